"""From a finetuned model to one that has forgotten, on the command line; and the same commands again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_runs import QUIET, model_is, names, read, records, write_rows
from safetensors.torch import load_file

from expunge.cli.main import script
from expunge.training.loop import Training
from expunge.training.step import Stepper
from recorded import WALL_CLOCK

Run = Callable[..., Any]
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RUN_FILES = {"run_config.json", "run.json", "log.jsonl", "pairs", "trained.json"}


def test_finetune_evaluate_unlearn(start_model: Path, evaluate: Run, unlearn: Run, tmp_path: Path) -> None:
    assert names(start_model) >= MODEL_FILES | RUN_FILES
    assert read(start_model / "run.json")["status"] == "complete"

    judged = evaluate(out=tmp_path / "eval")
    assert judged.code == 0, judged.stderr
    assert names(judged.out) == {
        "run_config.json",
        "run.json",
        "tables",
        "TOFU_EVAL.json",
        "TOFU_SUMMARY.json",
    }
    record = read(judged.out / "run.json")
    assert record["metrics"] == read(judged.out / "TOFU_SUMMARY.json")
    assert record["metrics"]["forget_quality"] is None
    assert "no retain_logs_path" in judged.stderr

    logs = f"retain_logs_path={judged.out / 'TOFU_EVAL.json'}"
    forgot = unlearn("eval=few", logs, "trainer.args.logging_steps=1")
    assert forgot.code == 0, forgot.stderr
    assert names(forgot.out) >= MODEL_FILES | RUN_FILES | {"reference", "evals", "tables"}
    summary = read(forgot.out / "evals" / "TOFU_SUMMARY.json")
    assert 0 <= summary["forget_quality"] <= 1
    assert read(forgot.out / "run.json")["metrics"] == summary
    # At the first step the model is the reference: NPO's loss is (2 / beta) log 2, with the method's own beta
    # of .1.
    logged = records(forgot.out)
    assert logged[0]["npo"] == pytest.approx(20 * 0.6931472, abs=1e-4)
    assert {"retain_nll", "loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(logged[0])
    assert not torch.equal(
        *(
            load_file(str(folder / "model.safetensors"))["model.norm.weight"]
            for folder in (start_model, forgot.out)
        )
    )
    pairs = read(forgot.out / "pairs" / "pairs.json")
    assert (pairs["n_anchor"], pairs["n_other"], len(pairs["epochs"][0])) == (40, 400, 40)


def test_the_same_command_again_trains_and_evaluates_nothing_twice(
    unlearn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = unlearn("eval=few", "trainer=GradAscent")
    assert first.code == 0, first.stderr
    before = {
        path: path.stat().st_mtime_ns
        for path in first.out.rglob("*")
        if path.is_file() and path.name not in RUN_FILES
    }

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained, or computed a table, a second time")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", never)
        patch.setattr("expunge.evaluation.collect.tokens.collect_tokens", never)
        patch.setattr("expunge.evaluation.collect.generations.collect_generations", never)
        again = unlearn("eval=few", "trainer=GradAscent")
    assert again.code == 0
    assert "is trained already" in again.stderr
    assert "nothing changed since the evaluation" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read(again.out / "run.json")["steps"] == 2

    # A run with another evaluation is still the same run.
    more = unlearn("eval=few", "trainer=GradAscent", "eval.tofu.generation.max_new_tokens=3")
    assert more.code == 0, more.stderr
    assert before[first.out / "model.safetensors"] == (first.out / "model.safetensors").stat().st_mtime_ns


def test_another_configuration_needs_another_folder_or_overwrite(unlearn: Run, tmp_path: Path) -> None:
    first = unlearn("trainer=GradAscent")
    assert first.code == 0, first.stderr
    weights = (first.out / "model.safetensors").read_bytes()
    refused = unlearn("trainer=GradAscent", "trainer.args.learning_rate=1e-2")
    assert refused.code == 2
    assert "trainer.args.learning_rate: 0.0005 there, 0.01 now" in refused.stderr
    assert "overwrite=true" in refused.stderr
    assert read(first.out / "run.json")["status"] == "complete"

    # A faulty command replaces nothing.
    faulty = unlearn("trainer=GradAscent", "overwrite=true", "retain_split=full")
    assert faulty.code == 2
    assert "share 40 of 40 forget rows" in faulty.stderr
    assert (first.out / "model.safetensors").read_bytes() == weights
    assert read(first.out / "run.json")["status"] == "complete"

    replaced = unlearn("trainer=GradAscent", "trainer.args.learning_rate=1e-2", "overwrite=true")
    assert replaced.code == 0, replaced.stderr
    assert (first.out / "model.safetensors").read_bytes() != weights
    assert read(first.out / "run_config.json")["config"]["trainer"]["args"]["learning_rate"] == 1e-2


STEPWISE = (
    "trainer.args.max_steps=4", "trainer.args.save_strategy=steps", "trainer.args.save_steps=2",
    "trainer.args.logging_steps=1",
    "trainer.args.per_device_train_batch_size=4", "trainer.args.gradient_accumulation_steps=2",
)  # fmt: skip


def stop_at_step(count: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as the `count`-th step of the run begins."""
    original, steps = Stepper.step, []

    def step(self: Stepper, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == count:
            raise KeyboardInterrupt
        return original(self, *args)

    patch.setattr(Stepper, "step", step)


def test_an_interrupted_run_resumes_to_the_very_same_weights(
    unlearn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unlearn(*STEPWISE, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    with monkeypatch.context() as patch:
        stop_at_step(4, patch)
        stopped = unlearn(*STEPWISE)
    assert stopped.code == 130
    assert "Traceback" not in stopped.stderr
    assert f"resume from {stopped.out / 'checkpoint-2'}" in stopped.stderr
    assert read(stopped.out / "run.json")["status"] == "interrupted"
    assert "trained.json" not in names(stopped.out)
    torch.manual_seed(99)
    resumed = unlearn(*STEPWISE)
    assert resumed.code == 0, resumed.stderr
    assert f"resuming from {stopped.out / 'checkpoint-2'}" in resumed.stderr
    for name in ("model.safetensors", "checkpoint-4/optimizer.pt", "pairs/pairs.json", "pairs/order.json"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    lasting = [
        [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in records(run.out)]
        for run in (whole, resumed)
    ]
    assert lasting[0] == lasting[1]
    assert read(resumed.out / "run.json")["status"] == "complete"


def test_rows_that_changed_since_the_interruption_are_other_rows(
    unlearn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"question": f"Who wrote book {number}?", "answer": f"Nobody wrote book {number}."}
        for number in range(12)
    ]
    file = write_rows(tmp_path / "rows.json", rows)
    command = (*STEPWISE, f"data.forget.MINI_forget.args.hf_args.path={file}")
    with monkeypatch.context() as patch:
        stop_at_step(4, patch)
        assert unlearn(*command).code == 130
    write_rows(file, [*rows[:-1], {"question": "Who wrote book 11?", "answer": "Somebody did."}])
    refused = unlearn(*command)
    assert refused.code == 2
    assert "belong to other forget or retain data" in refused.stderr
    write_rows(file, rows)
    assert unlearn(*command).code == 0


def test_interrupted_in_the_last_evaluation_only_evaluates_again(
    unlearn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.evaluation.collect.tokens.collect_tokens", interrupt)
        stopped = unlearn("eval=few", "trainer=GradAscent")
    assert stopped.code == 130
    assert {"trained.json", "model.safetensors"} <= names(stopped.out)
    again = unlearn("eval=few", "trainer=GradAscent")
    assert again.code == 0
    assert "is trained already" in again.stderr
    assert read(again.out / "run.json")["metrics"]["forget_Q_A_Prob"] > 0


def test_evaluation_in_training_chooses_the_best_model(unlearn: Run) -> None:
    done = unlearn(
        "eval=few", "trainer=GradAscent", "trainer.args.max_steps=3", "trainer.args.learning_rate=1e-2",
        "trainer.args.warmup_epochs=0",
        "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1", "trainer.args.save_strategy=steps",
        "trainer.args.save_steps=1",
        "trainer.args.load_best_model_at_end=true", "trainer.args.metric_for_best_model=forget_Q_A_Prob",
        "trainer.args.greater_is_better=true",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    found = {
        line["step"]: line["eval_forget_Q_A_Prob"]
        for line in records(done.out)
        if "eval_forget_Q_A_Prob" in line
    }
    for step, value in found.items():
        assert read(done.out / "evals" / f"step-{step}" / "TOFU_SUMMARY.json")["forget_Q_A_Prob"] == value
    # Ascent lowers it with each step, so the first step is the best one, and its checkpoint is kept.
    assert list(found) == [1, 2, 3]
    assert found[1] > found[2] > found[3]
    best, final = (
        load_file(str(folder / "model.safetensors")) for folder in (done.out / "checkpoint-1", done.out)
    )
    assert all(torch.equal(best[name], final[name]) for name in final)
    assert read(done.out / "evals" / "TOFU_SUMMARY.json")["forget_Q_A_Prob"] == pytest.approx(
        found[1], rel=1e-6
    )


def test_the_fields_scripts_run_the_same_pipelines(
    start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    own = ["--config-dir", str(config_dir), model_is(start_model), f"paths.output_dir={tmp_path / 'script'}"]
    argv = [
        "--config-name=unlearn.yaml",
        "experiment=unlearn/mini/default",
        "trainer=SimNPO",
        "task_name=X",
        "eval=null",
        QUIET,
    ]
    assert (
        script(
            "train.py",
            "train.yaml",
            [*argv, *own, "trainer.args.max_steps=1", "+trainer.args.logging_steps=1"],
        )
        == 0
    )
    assert "simnpo" in records(tmp_path / "script")[0]
    argv = [
        "--config-name=eval.yaml",
        "experiment=eval/mini/default",
        "eval=few",
        "task_name=Y",
        f"paths.output_dir={tmp_path / 'judged'}",
    ]
    assert script("eval.py", "eval.yaml", [*argv, *own[:3]]) == 0
    assert "TOFU_SUMMARY.json" in names(tmp_path / "judged")
