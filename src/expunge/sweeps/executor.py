"""What runs jobs: one protocol, and the executors by name."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from expunge.core.errors import Fault, UserError, unknown
from expunge.core.preemption import EXIT_PREEMPTED
from expunge.sweeps.job import Task

INTERRUPTED_CODES = (EXIT_PREEMPTED, 130, -signal.SIGINT, -signal.SIGTERM, -getattr(signal, "SIGUSR2", 0))
"""Exit codes of a run that was stopped from outside and goes on when the same command runs again."""

EXECUTORS = {
    "local": "expunge.sweeps.local:LocalExecutor",
    "joblib": "expunge.sweeps.side_by_side:JoblibExecutor",
    "submitit": "expunge.sweeps.slurm:SubmititExecutor",
    "ray": "expunge.sweeps.ray_tasks:RayExecutor",
}
"""Executor -> its class, imported when it is chosen."""


@dataclass(frozen=True)
class Status:
    """Where a task stands.

    Attributes:
        state: waiting, running or ended; cancelled = ended by `cancel`, and no more is known.
        exit_code: of a task that has ended; None where it ended without one.
        reason: what the executor knows of a task that has ended without an exit code.
    """

    state: Literal["waiting", "running", "ended", "cancelled"]
    exit_code: int | None = None
    reason: str = ""


class Executor(Protocol):
    """Runs tasks. Only `submit` and `close` may take long."""

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Take tasks; gives a handle for each, in their order. Called once."""

    def poll(self, handle: Any) -> Status:
        """Where a task stands."""

    def cancel(self, handle: Any) -> None:
        """End a task: one that runs is interrupted as by ctrl-C, one that waits never begins."""

    def close(self) -> None:
        """Give back what the executor holds; called after every task has ended or was cancelled."""


def executor_of(name: str, settings: Mapping[str, Any] | None = None) -> Executor:
    """The executor of a name.

    Args:
        name: a key of `EXECUTORS`.
        settings: its keyword arguments; None among them = not given.

    Raises:
        UserError: no such executor or setting, a setting that has to be given, or a package that is missing.
    """
    if name not in EXECUTORS:
        raise UserError.of([unknown("executor", name, list(EXECUTORS))])
    module, _, attribute = EXECUTORS[name].partition(":")
    cls = getattr(import_module(module), attribute)
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    faults = _faults(name, given, inspect.signature(cls).parameters)
    if faults:
        raise UserError.of(faults)
    made: Executor = cls(**given)
    return made


def _faults(name: str, given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> list[Fault]:
    """Settings that an executor does not take, and those that it needs and did not get."""
    is_open = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    takes = (
        f"it takes {', '.join(parameters)}" if parameters else "`--executor joblib` runs several at a time"
    )
    faults = [
        Fault(f"the executor {name} takes no {key} (given: {value})", takes)
        for key, value in given.items()
        if key not in parameters and not is_open
    ]
    needed = [
        key
        for key, item in parameters.items()
        if item.default is inspect.Parameter.empty and item.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return faults + [
        Fault(f"the executor {name} needs {key}", f"add --{key} N") for key in needed if key not in given
    ]
