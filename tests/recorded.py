"""Read the records of a run; shared by the tests of several rooms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.core.layout import LAYOUTS

WALL_CLOCK = (
    "seconds",
    "tokens_per_second",
    "peak_memory_mb",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "eval_runtime",
)
"""Keys that differ between two runs of one configuration; all others are equal, also after a resume."""


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in order, without an incomplete last line; empty if there are none."""
    files = [layout.log_file(run_dir) for layout in LAYOUTS.values()]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    if path.suffix != ".jsonl":
        lines = [line.removeprefix(b",") for line in lines if line not in (b"[", b"]", b"[]", b",", b"")]
    return [json.loads(line) for line in lines]
