"""What runs jobs: one protocol, and the executors by name."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from expunge.core.binding import Binder, Bound
from expunge.core.errors import UserError
from expunge.core.preemption import EXIT_PREEMPTED
from expunge.sweeps.job import Task

INTERRUPTED_CODES = (EXIT_PREEMPTED, 130, -signal.SIGINT, -signal.SIGTERM, -getattr(signal, "SIGUSR2", 0))
"""Exit codes of a run that was stopped from outside; the same command continues it."""

EXECUTORS = {
    "local": "expunge.sweeps.local:LocalExecutor",
    "joblib": "expunge.sweeps.local:JoblibExecutor",
    "submitit": "expunge.sweeps.slurm:SubmititExecutor",
    "ray": "expunge.sweeps.ray_tasks:RayExecutor",
}
"""Executor -> its class, which is imported when it is chosen."""

ADVICE = {"workers": "give --workers N", "gpus": "give --gpus K"}
"""Hints for settings that have an option of `expunge jobs`."""


@dataclass(frozen=True)
class Status:
    """The state of a task.

    Attributes:
        state: waiting, running or ended; cancelled = ended by `cancel`, nothing else is known.
        exit_code: of a task that ended; None if there is none.
        reason: why a task has no exit code or did not start, as far as the executor knows.
    """

    state: Literal["waiting", "running", "ended", "cancelled"]
    exit_code: int | None = None
    reason: str = ""


class Executor(Protocol):
    """Runs tasks. Only `submit` and `close` may take long."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Accept tasks, and return a handle for each, in the same order. Called once."""

    def poll(self, handle: Any) -> Status:
        """The state of a task."""

    def cancel(self, handle: Any) -> None:
        """End a task: one that runs is interrupted as by Ctrl-C, one that waits never starts."""

    def close(self) -> None:
        """Release what the executor holds; called after every task ended or was cancelled."""


def executor_of(name: str, settings: Mapping[str, Any] | None = None) -> Executor:
    """The executor of a name; arguments and faults as for `bind_executor`.

    Raises:
        UserError: also if a package is missing, or the executor cannot work here.
    """
    bound = bind_executor(name, settings)
    made: Executor = bound.load()(**bound.kwargs)
    return made


def bind_executor(name: str, settings: Mapping[str, Any] | None = None) -> Bound:
    """Check the name and the settings of an executor; nothing is imported.

    Args:
        name: a key of `EXECUTORS`, or `module:Class` of your own.
        settings: its keyword arguments; a value of None counts as not given.

    Raises:
        UserError: no such executor or setting, or a wrong value.
    """
    binder = Binder()
    signature = binder.find("--executor", name, EXECUTORS, "executor")
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    bound = None if signature is None else binder.bind(name, signature, given, advice=ADVICE)
    if bound is None:
        raise UserError.of(binder.faults)
    return bound
