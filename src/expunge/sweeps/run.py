"""Run many jobs: skip the finished ones, run the others, and report how each ended."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

from expunge.sweeps.executor import INTERRUPTED_CODES, Executor, Status
from expunge.sweeps.job import Job, check_jobs, last_lines

log = logging.getLogger(__name__)

FAILED = ("failed", "interrupted")
CANCEL_SECONDS = 60.0
"""Time for cancelled jobs to end."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: the job.
        state: skipped = it was finished before; done; failed; interrupted = stopped from outside, the same
            command continues it; not started = cancelled while it waited.
        exit_code: of its process; None if there was no process or its code is unknown.
        lines: why it failed: the last lines of its log, or what the executor reports.
    """

    job: Job
    state: Literal["skipped", "done", "failed", "interrupted", "not started"]
    exit_code: int | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """The progress of all jobs.

    Attributes:
        jobs: number of all jobs.
        skipped: jobs that were finished before.
        done: jobs that succeeded.
        failed: jobs that failed or were interrupted.
        running: jobs that run now.
        seconds: time since the jobs were submitted.
    """

    jobs: int
    skipped: int
    done: int
    failed: int
    running: int
    seconds: float

    @property
    def per_hour(self) -> float | None:
        """Jobs that end per hour; None before the first has ended."""
        ended = self.done + self.failed
        return ended / self.seconds * 3600 if ended and self.seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the last job ends, at the rate so far; None before the first has ended."""
        left = self.jobs - self.skipped - self.done - self.failed
        return None if self.per_hour is None else left / self.per_hour * 3600

    def __str__(self) -> str:
        parts = [f"{self.done + self.skipped} of {self.jobs} done", f"{self.failed} failed"]
        parts.append(f"{self.running} running")
        if self.per_hour is not None and self.eta_seconds is not None:
            parts += [f"{self.per_hour:.3g} an hour", f"about {self.eta_seconds / 60:.0f} min left"]
        return ", ".join(parts)


class JobsCancelled(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came while jobs ran; all of them were ended.

    Attributes:
        outcomes: how each ended, in the order of the jobs.
    """

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__("the jobs were cancelled")
        self.outcomes = outcomes


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    poll_seconds: float = 0.2,
) -> list[Outcome]:
    """Run the jobs that are not finished, and wait for them.

    A job whose folder holds its complete run is skipped. One that was interrupted continues, because its
    command is the same. If a job fails, the others still run.

    Args:
        jobs: each with its own run folder.
        executor: runs the jobs; it is closed at the end.
        on_progress: called whenever a job begins or ends.
        poll_seconds: time between two polls.

    Returns:
        An outcome for each job, in their order.

    Raises:
        UserError: two jobs write into the same folder.
        JobsCancelled: Ctrl-C or SIGTERM; running jobs were interrupted, their checkpoints stay.
    """
    watch = _Watch(jobs, executor, on_progress, poll_seconds)
    try:
        check_jobs(jobs)
        with _sigterm_as_ctrl_c():
            try:
                watch.submit()
                watch.wait()
            except KeyboardInterrupt:
                watch.cancel()
                raise JobsCancelled(watch.in_order()) from None
    finally:
        executor.close()
    return watch.in_order()


@dataclass
class _Watch:
    """The state of all jobs."""

    jobs: Sequence[Job]
    executor: Executor
    on_progress: Callable[[Progress], None] | None
    poll_seconds: float
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    open: dict[int, Any] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    cancels: bool = False
    begun: float = field(default_factory=time.monotonic)
    shown: tuple[int, int] | None = None

    def submit(self) -> None:
        """Submit the jobs that are not finished."""
        for number, job in enumerate(self.jobs):
            if job.is_finished:
                self.outcomes[number] = Outcome(job, "skipped")
        numbers = [number for number in range(len(self.jobs)) if number not in self.outcomes]
        if numbers:
            # A job may run before all are submitted; only what is in `open` can be cancelled.
            with _signals_wait():
                handles = self.executor.submit([self.jobs[number].task() for number in numbers])
                self.open = dict(zip(numbers, handles, strict=True))
        self._show()

    def wait(self, deadline: float = math.inf) -> None:
        """Poll all jobs until they have ended, and report changes."""
        while self.open and time.monotonic() < deadline:
            for number, handle in list(self.open.items()):
                self._note(number, self.executor.poll(handle))
            self._show()
            time.sleep(self.poll_seconds if self.open else 0)

    def cancel(self) -> None:
        """End all jobs, and wait for them; a second Ctrl-C stops the waiting."""
        log.warning("cancelling %d jobs; their checkpoints stay", len(self.open))
        self.cancels = True
        for handle in self.open.values():
            self.executor.cancel(handle)
        self.wait(time.monotonic() + CANCEL_SECONDS)

    def in_order(self) -> list[Outcome]:
        """An outcome for each job; one that did not end in time counts as interrupted."""
        return [
            self.outcomes.get(number, Outcome(job, "interrupted")) for number, job in enumerate(self.jobs)
        ]

    def _note(self, number: int, status: Status) -> None:
        if status.state == "running":
            self.running.add(number)
        elif status.state != "waiting":
            del self.open[number]
            outcome = _outcome(self.jobs[number], status, number in self.running, self.cancels)
            self.running.discard(number)
            self.outcomes[number] = outcome
            if outcome.state in FAILED:
                log.warning("%s: %s, see %s", outcome.job.folder, outcome.state, outcome.job.log)

    def _show(self) -> None:
        state = (len(self.outcomes), len(self.running))
        if self.on_progress is None or state == self.shown:
            return
        self.shown = state
        states = [outcome.state for outcome in self.outcomes.values()]
        failed, seconds = sum(state in FAILED for state in states), time.monotonic() - self.begun
        skipped, done = states.count("skipped"), states.count("done")
        self.on_progress(Progress(len(self.jobs), skipped, done, failed, len(self.running), seconds))


def _outcome(job: Job, status: Status, begun: bool, cancels: bool) -> Outcome:
    """How a job ended; while the jobs are cancelled, none counts as failed."""
    code = status.exit_code
    if code == 0:
        return Outcome(job, "done", 0)
    if status.state == "cancelled":
        return Outcome(job, "interrupted" if begun else "not started")
    lines = (status.reason,) if status.reason else ()
    if code is None or not lines:
        lines = (*lines, *last_lines(job.log))
    if cancels or code in INTERRUPTED_CODES or (code is None and job.status == "interrupted"):
        return Outcome(job, "interrupted", code, lines)
    return Outcome(job, "failed", code, lines)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends. A blocked signal would be blocked in children too."""
    came: list[int] = []
    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for caught in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(caught) not in (signal.SIG_IGN, None):
                kept[caught] = signal.signal(caught, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """While open, SIGTERM (of `kill`) ends the jobs as Ctrl-C does; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
