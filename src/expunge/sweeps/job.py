"""A job: one command line with its run folder, and whether that run is there already."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import Fault, UserError
from expunge.core.files import read_json
from expunge.core.fingerprint import fingerprint
from expunge.core.layout import RECORD_FILE, layout_of

CARRIED = (
    "EXPUNGE_CACHE",
    "EXPUNGE_DATA",
    "HF_DATASETS_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TOKENIZERS_PARALLELISM",
)
"""Variables of the submitting process that each job gets; no secrets, because they are written to files."""
EVALUATION = ("eval", "retain_logs_path", "holdout_split")
"""Keys outside a run's identity that still change its results: with another value it is evaluated again."""
HEADER = "--- "
"""Begins the line of a log that says which command runs; one log holds all attempts."""


@dataclass(frozen=True)
class Job:
    """One run of a command line.

    Attributes:
        words: the command line, such as `("expunge", "unlearn", "trainer=NPO", ...)`.
        folder: the run folder that the command fills; no two jobs share one.
        config: what the command computes; with it a finished run is known and skipped. None = the job always
            runs.
        environment: variables besides those that it inherits where it runs and those of `CARRIED`.
    """

    words: tuple[str, ...]
    folder: Path
    config: Config | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where stdout and stderr go, beside the run folder."""
        return self.folder.parent / f"{self.folder.name}.job.log"

    @property
    def status(self) -> str | None:
        """What the run's record says: running, interrupted, failed or complete; None before it begins."""
        return self._record().get("status")

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds this very run, complete, with the evaluation that is asked for."""
        record = self._record()
        if self.config is None or record.get("status") != "complete":
            return False
        layout = layout_of(self.folder)
        if layout is None or record.get("identity") != self.config.identity():
            return False
        there = read_json(self.folder / layout.config)["config"]
        return _evaluation(there) == _evaluation(self.config.tree)

    def _record(self) -> dict[str, Any]:
        path = self.folder / RECORD_FILE
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found

    def task(self) -> Task:
        """What is sent to where the job runs."""
        carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
        return Task(self.words, str(Path.cwd()), str(self.log.absolute()), {**carried, **self.environment})


@dataclass(frozen=True)
class Task:
    """A job as an executor gets it: plain values that can be sent to another machine.

    Attributes:
        words: the command line.
        cwd: the folder it runs in, so that relative paths mean the same everywhere.
        log: file that stdout and stderr are appended to, absolute.
        environment: variables that are set over those of the process that starts the command.
    """

    words: tuple[str, ...]
    cwd: str
    log: str
    environment: Mapping[str, str]


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse jobs that would write into one folder.

    Raises:
        UserError: all such jobs.
    """
    first: dict[Path, Job] = {}
    faults = []
    for job in jobs:
        known = first.setdefault(job.folder.absolute(), job)
        if known is not job:
            faults.append(
                Fault(
                    f"two jobs write into {job.folder}: {shlex.join(known.words)}"
                    f" and {shlex.join(job.words)}",
                    "give each its own task_name",
                )
            )
    if faults:
        raise UserError.of(faults)


def last_lines(log: Path, count: int = 10) -> list[str]:
    """The last lines that the newest attempt of a job wrote; none where there is no log."""
    if not log.is_file():
        return []
    lines: Iterable[str] = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[str] = []
    for line in lines:
        found = [] if line.startswith(HEADER) else [*found[1 - count :], line] if line.strip() else found
    return found


def _evaluation(tree: Mapping[str, Any]) -> str:
    return fingerprint({key: tree.get(key) for key in EVALUATION})
