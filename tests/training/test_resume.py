"""A resumed run equals an uninterrupted one bit for bit: weights, optimizer, scheduler, pairs and records."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge.core.errors import UserError
from expunge.training import checkpoint as checkpoints
from expunge.training import loop
from expunge.training.checkpoint import complete_checkpoints, newest_complete_checkpoint
from expunge.training.loop import Training
from expunge.training.records import RecordLog
from expunge.training.step import Stepper
from recorded import WALL_CLOCK, read_records

# 13 rows in steps of 4: 4 steps an epoch, the last one short; 2 epochs = 8 steps. Saving every 3 and logging
# every 5 steps rarely coincide, and both happen in the middle of epochs.
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 5,
}
LAST = 8


class Killed(BaseException):
    """Simulates a kill: no handler of the code under test catches it."""


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that must be equal at the end, from the files of the last checkpoint."""
    last = folder / f"checkpoint-{LAST}"
    records = [
        {key: value for key, value in record.items() if key not in WALL_CLOCK}
        for record in read_records(folder)
    ]
    state = json.loads((last / "trainer_state.json").read_text())
    return {
        "weights": load_file(str(last / "model.safetensors")),
        "rng": load_file(str(last / "rng_state_0.safetensors")),
        "sums": load_file(str(last / "sums_0.safetensors")),
        "optimizer": torch.load(last / "optimizer.pt", weights_only=True),
        "scheduler": torch.load(last / "scheduler.pt", weights_only=True),
        "records": records,
        "order": json.loads((folder / "pairs" / "order.json").read_text()),
        "progress": {
            key: state[key]
            for key in ("epoch", "global_step", "total_flos", "best_metric", "best_global_step")
        },
    }


def same(left: Any, right: Any) -> bool:
    """Equality of nested values, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["records"] == expected["records"]
    assert [key for key in expected if not same(found[key], expected[key])] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any) -> dict[str, Any]:
    return {}


@pytest.fixture
def expected(uninterrupted: dict[str, Any], trainer: Any, tmp_path: Path) -> dict[str, Any]:
    """The end of an uninterrupted run; made once per module."""
    if not uninterrupted:
        trainer(folder=tmp_path / "whole", **SETTINGS).run()
        uninterrupted.update(final_state(tmp_path / "whole"))
        assert [record["step"] for record in uninterrupted["records"]] == [5, LAST]
    return uninterrupted


def nth_call(
    target: Any,
    name: str,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[], None],
    after: bool = False,
) -> None:
    """Run `act` before or after the `count`-th call of a function."""
    original, calls = getattr(target, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count and not after:
            act()
        result = original(*args, **kwargs)
        if len(calls) == count and after:
            act()
        return result

    monkeypatch.setattr(target, name, wrapped)


def kill() -> None:
    raise Killed


# Points at which a run may die: the function, the number of its call, before or after it, and the newest
# checkpoint then.
POINTS = {
    "before the first checkpoint": (Stepper, "step", 2, False, None),
    "between two checkpoints": (Stepper, "step", 8, False, 6),
    "while weights are written": (loop, "save_optimizer", 2, False, 3),
    "before the mark": (checkpoints, "mark_complete", 2, False, 3),
    "after the mark, before the rename": (checkpoints, "mark_complete", 2, True, 3),
    "right after a checkpoint": (checkpoints, "seal", 2, True, 6),
    "at the end of an epoch, unsaved": (Stepper, "step", 5, False, 3),
    "after the last checkpoint": (checkpoints, "seal", 3, True, LAST),
    "while the last record is written": (RecordLog, "append", 2, True, LAST),
    "after the last record": (Training, "run", 1, True, LAST),
}


SLOW = ("before the first checkpoint", "while weights are written", "after the mark, before the rename")


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=pytest.mark.slow) if point in SLOW else point for point in POINTS]
)
def test_a_run_that_dies_anywhere_ends_as_if_it_had_not(
    point: str, expected: dict[str, Any], trainer: Any, tmp_path: Path
) -> None:
    target, name, count, after, newest = POINTS[point]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        nth_call(target, name, count, patch, kill, after)
        # A killed process does not clean up.
        patch.setattr("expunge.training.loop.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            trainer(folder=run, **SETTINGS).run()
    assert newest_complete_checkpoint(run) == (run / f"checkpoint-{newest}" if newest else None)
    torch.manual_seed(99)
    trainer(folder=run, **SETTINGS).run(True)
    assert_same(final_state(run), expected)
    assert not list(run.glob(".checkpoint-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("point", ["while weights are written"])
def test_a_process_killed_by_sigkill_resumes(
    point: str, expected: dict[str, Any], trainer: Any, tmp_path: Path
) -> None:
    target, name, count, after, newest = POINTS[point]
    run = tmp_path / "run"
    child = os.fork()
    if child == 0:
        try:
            nth_call(
                target, name, count, pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL), after
            )
            trainer(folder=run, **SETTINGS).run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert newest_complete_checkpoint(run) == run / f"checkpoint-{newest}"
    trainer(folder=run, **SETTINGS).run(True)
    assert_same(final_state(run), expected)


def test_a_named_checkpoint_goes_back_behind_later_ones(
    expected: dict[str, Any], trainer: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trainer(folder=run, **SETTINGS).run()
    trainer(folder=run, **SETTINGS).run(str(run / "checkpoint-3"))
    assert_same(final_state(run), expected)


EPOCHWISE = {
    "num_train_epochs": 2, "save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch",
    "load_best_model_at_end": True, "metric_for_best_model": "forgetting", "greater_is_better": True,
}  # fmt: skip


def best_in_the_middle(model: Any, step: int) -> dict[str, float | None]:
    """Draws from the global random state, like an evaluation that samples."""
    torch.rand(step)
    return {"forgetting": {4: 0.9, 8: 0.7}[step], "unscored": None}


def test_the_best_model_is_loaded_and_evaluating_changes_no_training(
    expected: dict[str, Any], trainer: Any, tmp_path: Path
) -> None:
    run = trainer(folder=tmp_path / "run", extra={"evaluator": best_in_the_middle}, **EPOCHWISE)
    run.run()
    assert same(load_file(str(tmp_path / "run" / "checkpoint-8" / "model.safetensors")), expected["weights"])
    best = load_file(str(tmp_path / "run" / "checkpoint-4" / "model.safetensors"))
    assert all(torch.equal(run.model.state_dict()[name], value) for name, value in best.items())
    evaluated = [record for record in read_records(tmp_path / "run") if "eval_forgetting" in record]
    assert [(record["step"], record["eval_forgetting"], record["eval_unscored"]) for record in evaluated] == [
        (4, 0.9, None), (8, 0.7, None),
    ]  # fmt: skip


def test_epoch_end_records_and_the_best_step_survive_a_kill(trainer: Any, tmp_path: Path) -> None:
    """Saved, evaluated and logged at an epoch's end: a save at the step would come before the record."""
    extra = {"evaluator": best_in_the_middle}
    trainer(folder=tmp_path / "whole", extra=extra, **EPOCHWISE).run()
    with pytest.MonkeyPatch.context() as patch:
        nth_call(checkpoints, "seal", 1, patch, kill, after=True)
        with pytest.raises(Killed):
            trainer(folder=tmp_path / "run", extra=extra, **EPOCHWISE).run()
    resumed = trainer(folder=tmp_path / "run", extra=extra, **EPOCHWISE)
    resumed.run(True)
    assert resumed.state.best_global_step == 4
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_logging_by_epoch_with_saving_by_steps(trainer: Any, tmp_path: Path) -> None:
    """Step 4 ends an epoch and saves: its checkpoint comes after the epoch's record."""
    args = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4, "logging_strategy": "epoch"}
    trainer(folder=tmp_path / "whole", **args).run()
    with pytest.MonkeyPatch.context() as patch:
        nth_call(checkpoints, "seal", 1, patch, kill, after=True)
        with pytest.raises(Killed):
            trainer(folder=tmp_path / "run", **args).run()
    trainer(folder=tmp_path / "run", **args).run(True)
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_stopped_by_max_steps_and_resumed_takes_no_step_more(trainer: Any, tmp_path: Path) -> None:
    args = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(folder=tmp_path / "run", **args).run()
    before = load_file(str(tmp_path / "run" / "checkpoint-6" / "model.safetensors"))
    again = trainer(folder=tmp_path / "run", **args)
    again.run(True)
    assert again.state.global_step == 6
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in before.items())


class Counting:
    """An objective with a state."""

    def __new__(cls, task: Any) -> Any:
        class WithState(type(task)):  # type: ignore[misc]
            seen: dict[str, float]

            def on_step(self, values: Any) -> None:
                self.seen = {name: self.seen.get(name, 0.0) + value for name, value in values.items()}

            def state_dict(self) -> dict[str, Any]:
                return {**self.seen, "vector_D": torch.arange(3.0)}

            def load_state_dict(self, state: Any) -> None:
                self.seen = {name: value for name, value in state.items() if name != "vector_D"}

        task.__class__ = WithState
        task.seen = {}
        return task


def test_an_objectives_state_is_saved_and_it_gets_every_steps_values(
    trainer: Any, objective: Any, tmp_path: Path
) -> None:
    whole, stopped, resumed = (Counting(objective()) for _ in range(3))
    trainer(folder=tmp_path / "whole", task=whole, **SETTINGS).run()
    with pytest.MonkeyPatch.context() as patch:
        nth_call(checkpoints, "seal", 2, patch, kill, after=True)
        with pytest.raises(Killed):
            trainer(folder=tmp_path / "run", task=stopped, **SETTINGS).run()
    trainer(folder=tmp_path / "run", task=resumed, **SETTINGS).run(True)
    assert resumed.seen == whole.seen
    logged = sum(5 * record["npo"] for record in read_records(tmp_path / "run") if "npo" in record)
    assert 0.5 * logged < whole.seen["npo"] < 2 * logged


def test_keyboard_interrupt_says_how_to_go_on(trainer: Any, tmp_path: Path, caplog: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        nth_call(Stepper, "step", 5, patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            trainer(folder=tmp_path / "run", **SETTINGS).run()
    assert "interrupted at step 4" in caplog.text
    assert f"resume from {tmp_path / 'run' / 'checkpoint-3'}" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    error: Exception, trainer: Any, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        nth_call(loop, "save_optimizer", 2, patch, fail)
        with pytest.raises(UserError, match="no space left"):
            trainer(folder=tmp_path / "run", **SETTINGS).run()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-3",
        "log.jsonl",
        "pairs",
    ]


def test_bad_checkpoints_are_refused_by_name(trainer: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(folder=run, **SETTINGS).run()
    before = (run / "log.jsonl").read_text()

    def refused(match: str, checkpoint: Path, **args: Any) -> None:
        with pytest.raises(UserError, match=match):
            trainer(folder=run, **{**SETTINGS, **args}).run(str(checkpoint))
        assert (run / "log.jsonl").read_text() == before

    refused("no such checkpoint", run / "checkpoint-7")
    weights = run / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    refused("contents of model.safetensors have changed", run / "checkpoint-6")
    weights.write_bytes(content[:-10])
    refused("model.safetensors has", run / "checkpoint-6")
    weights.unlink()
    refused("model.safetensors is missing", run / "checkpoint-6")
    assert complete_checkpoints(run) == [run / f"checkpoint-{step}" for step in (3, 8)]
    refused("rows_per_step = 4, this run has 2", run / "checkpoint-3", gradient_accumulation_steps=1)
    with pytest.raises(UserError, match="holds checkpoints of an earlier run"):
        trainer(folder=run, **SETTINGS).run()
    other = tmp_path / "other" / "checkpoint-3"
    (run / "checkpoint-3" / ".complete").unlink()
    (run / "checkpoint-3").rename(other) if other.parent.mkdir() is None else None
    refused("never finished", other)


def test_only_so_many_checkpoints_are_kept_and_none_is_pickled(trainer: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(folder=run, save_total_limit=2, **SETTINGS).run()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]
    files = {path.name for path in (run / "checkpoint-8").iterdir()}
    assert "training_args.bin" not in files
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(run / "checkpoint-8" / name, weights_only=True)
    assert {name for name in files if name.endswith((".pt", ".bin", ".pth", ".pkl"))} == {
        "optimizer.pt",
        "scheduler.pt",
    }


def test_weights_alone_are_nothing_to_resume_from(trainer: Any, tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "save_only_model": True}
    trainer(folder=tmp_path / "run", **args).run()
    with pytest.raises(UserError, match="holds weights only"):
        trainer(folder=tmp_path / "run", **args).run(True)


@pytest.mark.parametrize("name", ["log.jsonl", "log.json"])
def test_a_torn_last_line_is_no_record(name: str, tmp_path: Path) -> None:
    log = RecordLog(tmp_path / name)
    log.cut(0)
    log.append({"step": 1, "loss": float("nan")})
    with log.path.open("ab") as handle:
        handle.write(b'{"step": 2, "lo')
    assert read_records(tmp_path) == [{"step": 1, "loss": None}]
    log.cut(5)
    log.append({"step": 2})
    assert read_records(tmp_path) == [{"step": 1, "loss": None}, {"step": 2}]


def test_a_resumed_run_logs_and_evaluates_at_the_steps_of_its_own_command(
    trainer: Any, tmp_path: Path
) -> None:
    """Logging is no part of the identity of a run: one logged every 5 steps may resume with every step."""
    with pytest.MonkeyPatch.context() as patch:
        nth_call(Stepper, "step", 6, patch, kill)
        with pytest.raises(Killed):
            trainer(folder=tmp_path, **SETTINGS).run()
    trainer(folder=tmp_path, **{**SETTINGS, "logging_steps": 1}).run(True)
    assert [record["step"] for record in read_records(tmp_path) if "loss" in record] == [4, 5, 6, 7, 8]
