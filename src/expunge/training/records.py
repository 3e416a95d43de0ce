"""The records of a run, one per logging step.

Each record is written to disk at once. When a run resumes, the log is cut back to the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.files import reporting_write_errors, without_nan, write_text
from expunge.training.listeners import Listener

CLOSING = b"]\n"


class RecordLog(Listener):
    """The file of records of one run.

    A `.jsonl` file is JSON Lines. Any other file is one JSON array with one record per line. It is valid
    after every record: the next record overwrites the closing bracket. Its comma comes before it, so that a
    write never touches the line of the record before.

    Args:
        path: the file; see `core.layout`.

    Attributes:
        count: records in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = path.suffix == ".jsonl"
        self.count = 0

    def cut(self, count: int) -> None:
        """Keep the first `count` records; an incomplete last line is always dropped."""
        kept = _whole_lines(self.path)[:count]
        if self.lines:
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        else:
            write_text(self.path, "[\n" + "\n,".join(kept) + "\n]\n" if kept else "[]\n")
        self.count = len(kept)

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """Append the record with its step."""
        self.append({"step": step, **record})

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and wait until it is on disk; NaN and infinities become null."""
        line = json.dumps(without_nan(dict(record)), ensure_ascii=False, allow_nan=False).encode("utf-8")
        with reporting_write_errors(self.path):
            self.path.touch()
            with self.path.open("r+b") as handle:
                end = handle.seek(0, os.SEEK_END)
                if self.lines:
                    handle.write(line + b"\n")
                else:
                    handle.seek(end - len(CLOSING) if self.count else 0)
                    handle.write((b"," if self.count else b"[\n") + line + b"\n" + CLOSING)
                handle.flush()
                os.fsync(handle.fileno())
        self.count += 1


def _whole_lines(path: Path) -> list[str]:
    """The records of a file, one JSON text each, without an incomplete last line of a process that died."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if path.suffix != ".jsonl":
        lines = [line.removeprefix(b",") for line in lines if line not in (b"[", b"]", b"[]", b",", b"")]
    return [line.decode("utf-8") for line in lines]
