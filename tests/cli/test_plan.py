"""`expunge plan` on the embedded benchmark."""

from __future__ import annotations

import pytest

from expunge.cli.main import main

BASE = ["plan", "unlearn", "experiment=unlearn/mini/default", "trainer=NPO", "task_name=x"]
QUICK = [*BASE, "--ranks", "1", "--formulas"]


def line_of(printed: str, start: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith(start))


def test_a_plan_says_what_fits_and_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--ranks", "1,8", "--engine", "fsdp2", "--gpu-memory", "24", "--formulas"]) == 0
    printed = capsys.readouterr().out
    assert "GPU memory: 24.00 GiB (given)" in printed
    assert "labels (measured)" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line[:1].isdigit()] == [
        ["1", "yes"],
        ["8", "yes"],
    ]
    assert "first change that makes it fit" not in printed
    assert "346.1 TFLOP/s per GPU (assumed); 400 GB/s inside a node of 8 (assumed)" in printed
    assert "All terms in one pass" in printed


def test_figures_that_are_given_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--tflops", "500", "--across", "25", "--node", "4"]) == 0
    expected = (
        "500 TFLOP/s per GPU (given); 400 GB/s inside a node of 4 (assumed); 25 GB/s across nodes (given)"
    )
    assert expected in capsys.readouterr().out


def test_measured_steps_are_the_steps_of_one_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.pipelines.plan.measured_seconds", lambda *_: 7.25)
    assert main([*QUICK, "--measure"]) == 0
    printed = capsys.readouterr().out
    assert line_of(printed, "1 ").split()[5] == "7.25"
    assert "per GPU (measured on this c" in printed


def test_what_does_not_fit_gets_the_first_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--gpu-memory", "0.014"]) == 0
    printed = capsys.readouterr().out
    assert "GPU memory: 0.0140 GiB (given)" in printed
    assert line_of(printed, "1 ").split()[1] == "no"
    assert "micro-batches of 4 (trainer.args.per_device_train_batch_size=4" in line_of(printed, "1 ")
    assert main([*QUICK, "--gpu-memory", "0.001"]) == 0
    assert "no change is enough" in line_of(capsys.readouterr().out, "1 ")


def test_numbers_of_gpus_with_equal_parts_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--ranks", "1,2,4", "--formulas"]) == 0
    printed = capsys.readouterr().out
    assert "  W = 1: weights" in printed
    assert "  W = 2, 4: weights" in printed


def test_a_finetuning_has_rows_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "train", "experiment=finetune/mini/default", "task_name=x", "--ranks", "1", "--formulas"]
    assert main(words) == 0
    assert "rows, train: " in capsys.readouterr().out


def test_the_notices_of_the_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "trainer.args.warmup_ratio=0.1"]) == 0
    assert "note: trainer.args.warmup_ratio" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        ["--ranks", "0"],
        ["--ranks", "two"],
        ["--ranks", ""],
        ["--gpu-memory", "-1"],
        ["--gpu-memory", "nan"],
        ["--tflops", "inf"],
        ["--node", "0"],
    ],
)
def test_numbers_that_cannot_be(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *given]) == 2
    assert f"error: {given[0]} is " in capsys.readouterr().err


def test_an_evaluation_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config-name", "eval.yaml", "experiment=eval/tofu/default", "task_name=x"]) == 2
    assert "mode=eval: nothing is trained" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "validate"])
def test_a_wrong_word_in_front_is_an_unknown_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "unlern", "trainer=NPO"]) == 2
    error = capsys.readouterr().err
    assert "unknown verb 'unlern'" in error
    assert "did you mean 'unlearn'?" in error
