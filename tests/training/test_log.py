from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.core.layout import SOUL
from expunge.training.records import RecordLog
from recorded import read_records


def test_a_record_holds_means_over_its_steps_of_every_term(
    trainer: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """4 steps, logged every 3: the record of step 3 is the mean of the first three records of every step."""
    fine, coarse = (
        trainer(
            folder=tmp_path / str(every), model=tiny_model(seed=2), num_train_epochs=1, logging_steps=every
        )
        for every in (1, 3)
    )
    fine.run()
    coarse.run()
    steps, (third, last) = read_records(tmp_path / "1"), read_records(tmp_path / "3")
    for name in ("loss", "npo", "retain_nll"):
        assert third[name] == pytest.approx(sum(step[name] for step in steps[:3]) / 3, rel=1e-5)
    assert steps[0]["loss"] == pytest.approx(0.7 * steps[0]["npo"] + 1.3 * steps[0]["retain_nll"], rel=1e-5)
    assert third["grad_norm"] == steps[2]["grad_norm"]
    assert third["learning_rate"] == steps[2]["learning_rate"]
    assert third["tokens_per_second"] > 0
    assert third["peak_memory_mb"] > 1
    assert 0 < third["seconds"] < 600
    assert last["train_loss"] == pytest.approx(sum(step["loss"] for step in steps[:4]) / 4, rel=1e-5)


def test_console_and_tensorboard_show_the_terms(trainer: Any, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO, logger="expunge")
    trainer(folder=tmp_path / "run", max_steps=2, report_to="tensorboard").run()
    assert "step 1/2 loss=" in caplog.text
    assert "retain_nll=" in caplog.text
    assert "eta=0:00:0" in caplog.text
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    shown = EventAccumulator(str(event.parent)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/npo", "train/retain_nll", "train/grad_norm"} <= set(shown)


def test_finetuning_is_the_same_loop_on_the_retain_side_alone(
    trainer: Any, tiny_model: Any, retain_only: Any, tmp_path: Path
) -> None:
    from expunge.methods.objective import build_objective

    task = build_objective("expunge.methods.finetune:finetune", {})
    run = trainer(
        folder=tmp_path / "run",
        task=task,
        pairs=retain_only,
        model=tiny_model(seed=2),
        num_train_epochs=6,
        learning_rate=1e-2,
    )
    run.run()
    losses = [record["loss"] for record in read_records(tmp_path / "run") if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]


def test_an_unknown_best_metric_is_reported_with_the_near_match(trainer: Any) -> None:
    args = {
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "forget_qualty",
    }
    run = trainer(extra={"evaluator": lambda model, step: {"forget_quality": 0.5}}, **args)
    with pytest.raises(UserError, match="did you mean 'eval_forget_quality'"):
        run.run()


def test_every_record_says_what_the_run_has_taken(trainer: Any, tmp_path: Path) -> None:
    args = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer(
        folder=tmp_path / "run", extra={"evaluator": lambda model, step: {"forget_quality": 0.5}}, **args
    ).run()
    found = read_records(tmp_path / "run")
    assert [("loss" in record, "eval_forget_quality" in record,
    "train_loss" in record) for record in found] == [
        (True, False, False), (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    assert all(record["seconds"] > 0 and record["peak_memory_mb"] > 1 for record in found)


def test_an_array_is_whole_after_every_record_and_outlives_every_torn_write(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log.json")
    log.cut(0)
    assert json.loads(log.path.read_text()) == []
    states = [b"[]\n"]
    for step in (1, 2, 3):
        log.append({"step": step, "text": "a \u2028 b, ]\n"})
        assert (
            [record["step"] for record in json.loads(log.path.read_text())]
            == list(range(1, step + 1))
            == [record["step"] for record in read_records(tmp_path)]
        )
        states.append(log.path.read_bytes())
    # A record overwrites the end of the file. The records before it stay intact, even if only a part is
    # written.
    for before, after in pairwise(states):
        for written in range(len(after)):
            log.path.write_bytes(after[:written] + before[written:])
            found = [record["step"] for record in read_records(tmp_path)]
            assert found in (
                list(range(1, before.count(b"text") + 1)),
                list(range(1, after.count(b"text") + 1)),
            )
    for written in range(len(states[2]) - len("]\n"), len(states[3]), 5):
        log.path.write_bytes(states[3][:written] + states[2][written:])
        again = RecordLog(log.path)
        again.cut(2)
        again.append({"step": 3, "text": "a \u2028 b, ]\n"})
        assert log.path.read_bytes() == states[3]


def test_tensorboard_writes_where_the_layout_says(trainer: Any, tmp_path: Path) -> None:
    extra = {"layout": SOUL, "run_dir": tmp_path / "run"}
    trainer(folder=tmp_path / "run" / "checkpoints", max_steps=1, report_to="tensorboard", extra=extra).run()
    (event,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    assert event.parent == tmp_path / "run" / "logs"
    assert len(json.loads((tmp_path / "run" / "log.json").read_text())) == 2
