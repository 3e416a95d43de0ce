"""Procedures on the command line with the embedded benchmark: from a start model to an evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_runs import QUIET, Outcome, model_is, names, read, records
from safetensors.torch import load_file
from test_walk import STEPWISE, stop_at_step

from expunge.cli.main import main
from expunge.training.loop import Training

Run = Callable[..., Outcome]
WEIGHTS = "model.safetensors"


@pytest.fixture
def carry_out(expunge: Run, start_model: Path) -> Run:
    """A procedure on forget10 in stages of two steps; evaluate only if the arguments ask for it."""

    def run(procedure: str, *overrides: str, out: Path | None = None) -> Outcome:
        start = () if any("model_args.pretrained" in item for item in overrides) else (model_is(start_model),)
        suite = () if any(item.startswith("eval=") for item in overrides) else ("eval=null",)
        steps = () if any("max_steps" in item for item in overrides) else ("trainer.args.max_steps=2",)
        argv = (f"procedure={procedure}", *start, *suite, *steps, QUIET, *overrides)
        return expunge("unlearn", "experiment=unlearn/mini/default", *argv, out=out)

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / WEIGHTS))


def test_task_vector_from_start_to_scores(carry_out: Run, start_model: Path) -> None:
    """The result is the formula applied to start model and stage; the stage learns the forget rows."""
    done = carry_out(
        "task_vector",
        "eval=few",
        "procedure.args.scale=2.5",
        "procedure.keep_stages=true",
        "trainer.args.logging_steps=1",
    )
    assert done.code == 0, done.stderr
    stage = done.out / "stages" / "finetuned"
    assert names(done.out) >= {"config.json", "tokenizer.json", "run.json", "trained.json", "evals", "stages"}
    start, tuned, made = weights(start_model), weights(stage), weights(done.out)
    assert start.keys() == made.keys()
    for name, theta in start.items():
        assert torch.equal(made[name], theta - 2.5 * (tuned[name] - theta)), name
    assert not torch.equal(made["model.norm.weight"], start["model.norm.weight"])
    record = read(done.out / "run.json")
    assert (record["method"], record["status"], record["steps"]) == (
        "expunge.procedures.task_vector:task_vector",
        "complete",
        2,
    )
    assert record["metrics"] == read(done.out / "evals" / "TOFU_SUMMARY.json")
    config = read(stage / "run_config.json")["config"]
    assert (config["mode"], list(config["data"]["train"]), config["eval"]) == (
        "finetune",
        ["MINI_forget"],
        {},
    )
    assert [line["finetune"] for line in records(stage)[:2]][1] < records(stage)[0]["finetune"]

    refused = carry_out("task_vector", "eval=few", "procedure.args.scale=2", "trainer.args.logging_steps=1")
    assert refused.code == 2
    assert "procedure.args.scale: 2.5 there, 2 now" in refused.stderr


def test_scale_0_is_the_start_model(carry_out: Run, start_model: Path) -> None:
    asked = ("eval=few", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1")
    done = carry_out("task_vector", "procedure.args.scale=0", "trainer.args.max_steps=1", *asked)
    assert done.code == 0, done.stderr
    assert "trainer.args.eval_strategy=steps is ignored: no stage of task_vector trains" in done.stderr
    start, made = weights(start_model), weights(done.out)
    assert all(torch.equal(start[name].view(torch.uint8), made[name].view(torch.uint8)) for name in start)
    assert "stages" not in names(done.out)


def test_task_vector_of_an_adapter_is_that_of_the_merged_weights(carry_out: Run, start_model: Path) -> None:
    done = carry_out(
        "task_vector", "model/adapter=lora", "procedure.keep_stages=true", "trainer.args.warmup_epochs=0"
    )
    assert done.code == 0, done.stderr
    start, tuned, made = weights(start_model), weights(done.out / "stages" / "finetuned"), weights(done.out)
    moved = [name for name in start if not torch.equal(made[name], start[name])]
    assert moved
    assert all("proj" in name for name in moved)
    assert all(torch.equal(made[name], start[name] - (tuned[name] - start[name])) for name in start)
    assert "adapter_config.json" not in names(done.out)


def test_retrain_is_finetuning_on_the_retain_rows(
    carry_out: Run, expunge: Run, start_model: Path, tmp_path: Path
) -> None:
    """Bit for bit the model of `expunge train` on those rows; a trained start model is reported."""
    steps = ("trainer.args.max_steps=2", "budget=mini_finetune", QUIET)
    done = carry_out(
        "retrain", *steps, "eval=few", "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=2"
    )
    assert done.code == 0, done.stderr
    assert "eval_forget_Q_A_Prob" in {key for line in records(done.out) for key in line}
    assert "must start from a model that has seen none of these rows" in done.stderr
    assert any("must start from" in notice for notice in read(done.out / "run.json")["notices"])
    rows = (
        "data/datasets@data.train=[MINI_full,MINI_facts]",
        "data.train.MINI_full.args.hf_args.name=retain90",
    )
    plain = expunge(
        "train",
        "experiment=finetune/mini/default",
        *rows,
        *steps,
        model_is(start_model),
        out=tmp_path / "plain",
    )
    assert plain.code == 0, plain.stderr
    assert (done.out / WEIGHTS).read_bytes() == (plain.out / WEIGHTS).read_bytes()
    assert read(done.out / "run.json")["steps"] == 2


def test_whp_learns_generic_labels_and_does_nothing_twice(
    carry_out: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval=few", "procedure.args.reinforced.learning_rate=5e-3", "trainer.args.logging_steps=1")
    done = carry_out("whp", *command, "procedure.keep_stages=true")
    assert done.code == 0, done.stderr
    assert names(done.out) >= {WEIGHTS, "log.jsonl", "generic_labels.json", "evals", "stages"}
    stored = read(done.out / "generic_labels.json")
    assert (stored["alpha"], len(stored["rows"])) == (5.0, 40)
    assert all(len(row["labels"]) == len(row["generic"]) for row in stored["rows"])
    changed = sum(
        own != other
        for row in stored["rows"]
        for own, other in zip(row["labels"], row["generic"], strict=True)
    )
    total = sum(len(row["labels"]) for row in stored["rows"])
    assert f"{changed} of {total} generic labels differ" in done.stderr
    assert changed > 0
    stage = read(done.out / "stages" / "reinforced" / "run_config.json")["config"]
    assert stage["trainer"]["args"]["learning_rate"] == 5e-3
    assert read(done.out / "run.json")["steps"] == 4
    # The first loss is that of the start model on the generic labels, not on the labels of the rows.
    assert records(done.out)[0]["finetune"] != pytest.approx(
        records(done.out / "stages" / "reinforced")[0]["finetune"], abs=1e-3
    )

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("done a second time")

    before = (done.out / WEIGHTS).stat().st_mtime_ns
    monkeypatch.setattr(Training, "run", never)
    monkeypatch.setattr("expunge.procedures.whp.generic_labels", never)
    monkeypatch.setattr("expunge.evaluation.collect.tokens.collect_tokens", never)
    again = carry_out("whp", *command)
    assert again.code == 0, again.stderr
    assert "is trained already" in again.stderr
    assert (again.out / WEIGHTS).stat().st_mtime_ns == before
    assert read(again.out / "run.json")["steps"] == 4
    # A run that keeps its stages is the same run.
    assert "stages" not in names(again.out)


@pytest.mark.parametrize(
    "steps",
    [pytest.param(3, marks=pytest.mark.slow, id="in the first stage"), pytest.param(7, id="in the last")],
)
def test_an_interrupted_procedure_resumes_to_the_same_weights(
    steps: int, carry_out: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of four steps, a checkpoint every two steps: stopped in step 3 of either stage."""
    whole = carry_out("whp", *STEPWISE, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    with monkeypatch.context() as patch:
        stop_at_step(steps, patch)
        stopped = carry_out("whp", *STEPWISE)
    assert stopped.code == 130
    assert read(stopped.out / "run.json")["status"] == "interrupted"
    stage = stopped.out / "stages" / "reinforced"
    halted = stage if steps == 3 else stopped.out
    assert (stage / "trained.json").is_file() == (steps == 7)
    done = sorted(path.stat().st_mtime_ns for path in stage.glob(WEIGHTS))
    torch.manual_seed(99)
    resumed = carry_out("whp", *STEPWISE, "procedure.keep_stages=true")
    assert resumed.code == 0, resumed.stderr
    assert f"resuming from {halted / 'checkpoint-2'}" in resumed.stderr
    if steps == 7:
        assert sorted(path.stat().st_mtime_ns for path in stage.glob(WEIGHTS)) == done
    for name in (WEIGHTS, "generic_labels.json", "checkpoint-4/optimizer.pt"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes(), name
    assert read(resumed.out / "run.json")["steps"] == read(whole.out / "run.json")["steps"] == 8


def test_a_complete_stage_is_not_repeated(
    carry_out: Run, start_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.procedures.task_vector.write_negated", interrupt)
        assert carry_out("task_vector").code == 130
    monkeypatch.setattr(Training, "run", lambda *_, **__: pytest.fail("trained a second time"))
    again = carry_out("task_vector")
    assert again.code == 0, again.stderr
    assert weights(again.out).keys() == weights(start_model).keys()
    assert read(again.out / "run.json")["steps"] == 2


def test_what_is_faulty_leaves_nothing(carry_out: Run, tmp_path: Path, start_model: Path) -> None:
    faulty = carry_out("task_vector", "retain_split=full")
    assert faulty.code == 2
    assert "share 40 of 40 forget rows" in faulty.stderr
    assert not faulty.out.exists()
    broken = tmp_path / "broken"
    shutil.copytree(start_model, broken)
    (broken / WEIGHTS).write_bytes(b"no weights")
    for name in ("task_vector", "retrain"):
        faulty = carry_out(name, model_is(broken))
        assert faulty.code == 2, faulty.stderr
        assert "Traceback" not in faulty.stderr
        assert not faulty.out.exists(), name


@pytest.mark.slow
def test_procedures_forget_on_the_embedded_benchmark(tmp_path: Path) -> None:
    """As in the demo: task vector and WHP lower what the full model knows (.98); retraining never knew it."""
    common = (QUIET, "task_name=x")
    full = tmp_path / "full"
    assert main(["train", "experiment=finetune/mini/default", *common, f"paths.output_dir={full}"]) == 0
    commands = {
        "task_vector": ("procedure=task_vector", "procedure.args.scale=3", model_is(full)),
        "whp": ("procedure=whp", model_is(full)),
        "retrain": ("procedure=retrain", "budget=mini_finetune"),
    }
    found = {}
    for name, overrides in commands.items():
        out = tmp_path / name
        assert (
            main(
                ["unlearn", "experiment=unlearn/mini/default", *overrides, *common, f"paths.output_dir={out}"]
            )
            == 0
        )
        found[name] = read(out / "evals" / "TOFU_SUMMARY.json")
    assert found["task_vector"]["forget_Q_A_Prob"] < 0.5
    assert found["whp"]["forget_Q_A_Prob"] < 0.5
    assert found["retrain"]["forget_Q_A_Prob"] < 0.3
    assert all(scores["model_utility"] > 0.75 for scores in found.values())
