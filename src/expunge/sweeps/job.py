"""A job: one command line with its run folder, and whether that run is finished."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import Fault, UserError
from expunge.core.files import read_json
from expunge.core.fingerprint import fingerprint
from expunge.core.layout import RECORD_FILE, layout_of

CARRIED = [
    "EXPUNGE_CACHE",
    "EXPUNGE_DATA",
    "HF_DATASETS_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TOKENIZERS_PARALLELISM",
]
"""Variables of the submitting process that each job gets; no secrets, because they are written to files."""
EVALUATION = ("eval", "retain_logs_path", "holdout_split")
"""Keys that are not part of a run's identity, but change its results: a new value needs a new evaluation."""
HEADER = "--- "
"""Begins the log line of each attempt; one log holds all attempts."""


@dataclass(frozen=True)
class Job:
    """One run of a command line.

    Attributes:
        words: the command line, such as `("expunge", "unlearn", "trainer=NPO", ...)`.
        folder: the run folder of the command; each job has its own.
        config: what the command computes, so that a finished run can be skipped; None = the job always runs.
        environment: variables besides the inherited ones and those of `CARRIED`.
    """

    words: tuple[str, ...]
    folder: Path
    config: Config | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """The file of stdout and stderr, beside the run folder."""
        return self.folder.parent / f"{self.folder.name}.job.log"

    @property
    def status(self) -> str | None:
        """The status in the run's record: running, interrupted, failed or complete; None before it begins."""
        return self._record().get("status")

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds this run, complete, with this evaluation."""
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
        return dict(read_json(path)) if path.is_file() else {}

    def task(self) -> Task:
        """What the executor gets."""
        carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
        return Task(self.words, str(Path.cwd()), str(self.log.absolute()), {**carried, **self.environment})


@dataclass(frozen=True)
class Task:
    """A job as plain values, which can be sent to another machine.

    Attributes:
        words: the command line.
        cwd: its working folder, so that relative paths mean the same on all machines.
        log: absolute path of the file to which stdout and stderr are appended.
        environment: variables that replace those of the process that starts the command.
    """

    words: tuple[str, ...]
    cwd: str
    log: str
    environment: Mapping[str, str]


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse jobs that would write into the same folder.

    Raises:
        UserError: all such jobs.
    """
    first: dict[Path, Job] = {}
    faults = [
        Fault(
            f"two jobs write into {job.folder}: {shlex.join(known.words)} and {shlex.join(job.words)}",
            "give each its own task_name",
        )
        for job in jobs
        if (known := first.setdefault(job.folder.absolute(), job)) is not job
    ]
    if faults:
        raise UserError.of(faults)


def last_lines(log: Path, count: int = 10) -> list[str]:
    """The last lines of a job's newest attempt, without empty ones; none if there is no log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    begins = [number for number, line in enumerate(lines) if line.startswith(HEADER)]
    return [line for line in lines[begins[-1] + 1 if begins else 0 :] if line.strip()][-count:]


def _evaluation(tree: Mapping[str, Any]) -> str:
    return fingerprint({key: tree.get(key) for key in EVALUATION})
