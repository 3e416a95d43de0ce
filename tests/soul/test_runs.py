from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.core.preemption import EXIT_PREEMPTED
from expunge.soul.main import script
from expunge.training.step import Stepper
from recorded import read_records

RUN = (
    "--overall.model_name expunge/mini --unlearn.task_name tofu --unlearn.unlearn_method {method} "
    "--unlearn.max_steps 2 "
    "--dataset.forget_dataset_name Tofu_forget10 --dataset.retain_dataset_name Tofu_retain90 "
    "--dataset.batch_size 2 "
    "--logger.name {name} eval=null model.model_args.torch_dtype=float32"
)


def records(folder: Path) -> list[dict[str, object]]:
    return read_records(folder)


def test_a_composite_trains_by_command_line(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [
        *RUN.format(method="GA+FT", name="A").split(),
        "--unlearn.GA+FT.gamma",
        "0.5",
        "--dataset.forget_ratio",
        "4",
    ]
    assert script("unlearn_model", argv) == 0
    steps = [
        record for record in records(data_root.parent / "files" / "logs" / "A") if "retain_nll" in record
    ]
    assert len(steps) == 2
    assert all(abs(step["loss"] - (step["grad_diff"] + 0.5 * step["retain_nll"])) < 1e-4 for step in steps)  # type: ignore[operator]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")
def test_sigusr2_writes_a_checkpoint_and_ends_with_75(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for `expunge unlearn`: the same command continues the run."""
    argv = [*RUN.format(method="GA", name="P").split(), "--dataset.forget_ratio", "4"]
    step = Stepper.step

    def interrupted(self: Stepper, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR2)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", interrupted)
        assert script("unlearn_model", argv) == EXIT_PREEMPTED
    assert "stopped by SIGUSR2; the same command continues" in capsys.readouterr().err
    assert script("unlearn_model", argv) == 0
    assert "resuming from" in capsys.readouterr().err


def test_random_labels_with_the_rest_of_the_forget_set(data_root: Path) -> None:
    argv = (
        RUN.format(method="RL", name="B")
        .replace("--dataset.retain_dataset_name Tofu_retain90", "--dataset.self_retain 1")
        .split()
    )
    assert script("unlearn_model", [*argv, "--dataset.forget_ratio", "0.5"]) == 0
    folder = data_root.parent / "files" / "logs" / "B"
    assert [record["rl"] for record in records(folder) if "rl" in record]
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["data"]["retain"]["TOFU_QA_retain"]["args"]["select"] == {
        "ratio": 0.5,
        "seed": 0,
        "complement": True,
    }
    assert config["data"]["forget"]["TOFU_QA_forget"]["args"]["answers"] == config["data"]["retain"]


def test_more_rows_than_there_are_is_an_error_before_a_model_is_loaded(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*RUN.format(method="GA", name="C").split(), "--dataset.forget_ratio", "200"]
    assert script("unlearn_model", argv) == 2
    assert "requests 200 rows" in capsys.readouterr().err


def test_a_task_is_evaluated_by_its_suites(
    data_root: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, then ppl, few_shots (null, as the harness is not installed) and wmdp, in SOUL's files."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    questions = [
        {"question": f"Who is {name}?", "choices": ["a", "b", "c", "d"], "answer": 1}
        for name in ("Ada", "Ben")
    ]
    for name in ("wmdp/wmdp-bio", "wmdp/wmdp-chem", "wmdp/wmdp-cyber"):
        write_rows(data_root / f"{name}.jsonl", list(questions))
    (data_root / "wikitext").mkdir()
    (data_root / "wikitext" / "wiki.test.raw").write_text(" = Ada = \n \n Ada writes . \n")
    argv = (
        RUN.format(method="GA", name="W")
        .replace("eval=null", "")
        .replace("task_name tofu", "task_name wmdp")
        .split()
    )
    assert script("unlearn_model", [*argv, "--dataset.forget_ratio", "2"]) == 0
    folder = data_root.parent / "files" / "logs" / "W"
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("ppl", "few_shots", "wmdp")}
    assert found["ppl"]["word_perplexity"]["n_words"] == 6
    assert found["ppl"]["bits_per_byte"]["agg_value"] > 0
    assert found["wmdp"]["wmdp"]["n_scored"] == 6
    assert found["wmdp"]["mmlu"]["agg_value"] is None
    assert str(data_root / "mmlu" / "mmlu_test.jsonl") in found["wmdp"]["mmlu"]["reason"]
    assert "lm-eval" in found["few_shots"]["boolq"]["reason"]
    assert (
        json.loads((folder / "run.json").read_text())["metrics"]["wmdp"] == found["wmdp"]["wmdp"]["agg_value"]
    )
