"""`expunge plan` on the embedded benchmark."""

from __future__ import annotations

import pytest

from expunge.cli.main import main

BASE = ["plan", "unlearn", "experiment=unlearn/mini/default", "trainer=NPO", "task_name=x"]


def test_a_plan_says_what_fits_and_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--ranks", "1,8", "--engine", "fsdp2", "--gpu-memory", "24", "--formulas"]) == 0
    printed = capsys.readouterr().out
    assert "GPU memory: 24.0 GiB (given)" in printed
    assert "labels (measured)" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line[:1].isdigit()] == [
        ["1", "yes"],
        ["8", "yes"],
    ]
    assert "(assumed)" in printed


def test_what_does_not_fit_gets_the_first_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, "--ranks", "1", "--gpu-memory", "0.014", "--formulas"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("1 "))
    assert line.split()[1] == "no"


@pytest.mark.parametrize("given", [["--ranks", "0"], ["--ranks", "two"], ["--gpu-memory", "-1"]])
def test_numbers_that_cannot_be(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE, *given]) == 2
    assert given[0] in capsys.readouterr().err


def test_an_evaluation_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config-name", "eval.yaml", "experiment=eval/tofu/default", "task_name=x"]) == 2
    assert "nothing is trained" in capsys.readouterr().err
