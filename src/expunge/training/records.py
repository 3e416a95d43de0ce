"""`log.jsonl`: one record a logging step, on disk as soon as it is made, cut back to a checkpoint when a run resumes from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.files import told_to_user, without_nan, write_text

LOG_FILE = "log.jsonl"
WALL_CLOCK = (
    "seconds", "tokens_per_second", "peak_memory_mb",
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
)  # fmt: skip
"""Keys that differ between two runs of the same configuration; a resumed run's log equals an uninterrupted one's in all others."""


class RecordLog:
    """The file of records of one run.

    Args:
        run_dir: the run's folder.

    Attributes:
        count: records in the file.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_FILE
        self.count = 0

    def cut(self, count: int) -> None:
        """Keep the first `count` records; a last line that was not written whole is dropped in any case."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n")][:count]
        write_text(self.path, b"".join(kept).decode("utf-8"))
        self.count = len(kept)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on disk; NaN and infinities become null."""
        line = json.dumps(without_nan(dict(record)), ensure_ascii=False, allow_nan=False) + "\n"
        with told_to_user(self.path), self.path.open("ab") as handle:
            handle.write(line.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        self.count += 1


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in order; empty where it has none. A last line that was not written whole is left out."""
    path = run_dir / LOG_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
