"""The same five-step training under every logger."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.soul.flags import LOGGERS
from expunge.soul.main import script

FLAGS = (
    "--overall.model_name expunge/mini --unlearn.task_name tofu --unlearn.unlearn_method GA+FT "
    "--unlearn.GA+FT.gamma 0.5 "
    "--unlearn.max_steps 5 --dataset.forget_dataset_name Tofu_forget10 --dataset.retain_dataset_name "
    "Tofu_retain90 "
    "--dataset.forget_ratio 4 --dataset.batch_size 2 eval=null model.model_args.torch_dtype=float32"
)
TERMS = ("loss", "grad_diff", "retain_nll", "learning_rate", "grad_norm", "seconds", "peak_memory_mb")
OTHER_PROCESS = """
import sys
from expunge.soul.main import script
codes = [script("unlearn_model", [*sys.argv[1:], "--logger.name", name]) for name in ("one", "two")]
sys.exit(max(codes))
"""


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The records of the steps, from a file that is valid JSON."""
    found = json.loads((folder / "log.json").read_text())
    assert set(TERMS) <= set(found[0])
    assert set(TERMS[-2:]) <= set(found[-1])
    return [record for record in found if "loss" in record]


def test_the_loggers_are_souls() -> None:
    assert LOGGERS == ("json", "tensorboard", "wandb", "trackio", "none")


@pytest.mark.parametrize("logger", ["json", "tensorboard", pytest.param("none", marks=pytest.mark.slow)])
def test_the_loggers_that_write_into_the_run(logger: str, data_root: Path) -> None:
    assert (
        script(
            "unlearn_model",
            [
                *FLAGS.split(),
                "--overall.logger",
                logger,
                "--logger.name",
                "N",
                f"--logger.{logger}.root",
                "logs",
            ],
        )
        == 0
    )
    folder = data_root.parent / "logs" / "N"
    steps = steps_of(folder)
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    assert all(abs(step["loss"] - (step["grad_diff"] + 0.5 * step["retain_nll"])) < 1e-4 for step in steps)
    events = list(folder.rglob("events.out.tfevents.*"))
    assert len(events) == (logger == "tensorboard")
    if events:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        assert events[0].parent == folder / "logs"
        shown = EventAccumulator(str(folder / "logs")).Reload()
        for term in TERMS:
            assert [event.value for event in shown.Scalars(f"train/{term}")][:5] == pytest.approx(
                [step[term] for step in steps]
            )


def elsewhere(logger: str, data_root: Path, **env: str) -> Path:
    """Start two runs, one after the other, in another process; returns their working directory."""
    if importlib.util.find_spec(logger) is None:
        pytest.skip(f'{logger} is not installed: pip install "expunge[{logger}]"')
    here = data_root.parent
    command = [sys.executable, "-c", OTHER_PROCESS, *FLAGS.split(), "--overall.logger", logger]
    subprocess.run(
        command, cwd=here, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, check=True, timeout=240
    )
    return here


@pytest.mark.slow
def test_trackio_has_every_term_in_its_database(data_root: Path, tmp_path: Path) -> None:
    here = elsewhere("trackio", data_root, TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    for name in ("one", "two"):
        shown = [json.loads(metrics) for run, metrics in rows if run == name]
        hold_against(here / "files" / "logs" / name, [record for record in shown if "train/loss" in record])


@pytest.mark.slow
def test_wandb_has_every_term_in_a_run_of_its_own(data_root: Path) -> None:
    here = elsewhere("wandb", data_root, WANDB_MODE="offline")
    files = sorted(here.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    histories = [[record for record in history(file) if "train/loss" in record] for file in files]
    losses = {
        name: [step["loss"] for step in steps_of(here / "files" / "logs" / name)] for name in ("one", "two")
    }
    assert losses["one"] == losses["two"]
    for shown in histories:
        # The name of a file does not say which run it is; the terms without a time are equal in both.
        hold_against(here / "files" / "logs" / "one", shown, TERMS[:-2])


def hold_against(folder: Path, shown: list[dict[str, Any]], terms: tuple[str, ...] = TERMS) -> None:
    steps = steps_of(folder)
    assert len(shown) == len(steps) == 5
    for term in terms:
        assert [record[f"train/{term}"] for record in shown] == pytest.approx(
            [step[term] for step in steps]
        ), term


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The records in a wandb file: LevelDB log format after seven bytes, one protobuf message each."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole, block, header = file.read_bytes(), 7, b"", 32768, 7
    while position + header <= len(data):
        if (room := block - position % block) < header:
            position += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + header : position + header + size]
        position += header + size
        # 1 is a whole record; 2, 3 and 4 are the first, a middle and the last part of a record.
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            if record.WhichOneof("record_type") == "history":
                yield {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }


@pytest.mark.parametrize("logger", ["tensorboard", "wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_reported_before_a_model_is_loaded(
    logger: str, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == logger else installed(name, *rest)
    )
    monkeypatch.setattr("expunge.cli.verbs.run.PIPELINES", {})
    assert script("unlearn_model", [*FLAGS.split(), "--overall.logger", logger]) == 2
    text = capsys.readouterr().err
    assert f"--overall.logger {logger} needs the package '{logger}', which is not installed" in text
    assert f'pip install "expunge[{logger}]"' in text
    assert not (data_root.parent / "files").exists()
