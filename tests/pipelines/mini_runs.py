"""Helpers of the tests of this folder, besides the fixtures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUIET = "trainer.args.report_to=none"


@dataclass(frozen=True)
class Outcome:
    """The result of a command line."""

    code: int
    stderr: str
    out: Path


def model_is(folder: Path) -> str:
    return f"model.model_args.pretrained_model_name_or_path={folder}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def copied(source: Path, target: Path) -> Path:
    """A copy of a run's model, without its other files."""
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("run*.json", "trained.json", "log.jsonl", "pairs")
    )
    return target
