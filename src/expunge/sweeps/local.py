"""One job after the other on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence

from expunge.core.errors import UserError
from expunge.sweeps.child import FAILED_TO_START, GRACE_SECONDS, Child
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task


class LocalExecutor:
    """Runs each task as a process of its own, when the one before it has ended; see `Executor`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Task]] = []
        self._running: tuple[int, Child] | None = None
        self._ended: dict[int, Status] = {}

    def submit(self, tasks: Sequence[Task]) -> Sequence[int]:
        """Queue tasks."""
        self._waiting = list(enumerate(tasks))
        return range(len(tasks))

    def poll(self, handle: int) -> Status:
        """Where a task stands; the next one is started where none runs."""
        if self._running is not None and (code := self._running[1].poll()) is not None:
            self._ended[self._running[0]] = Status("ended", code)
            self._running = None
        if self._running is None and self._waiting:
            self._start(*self._waiting.pop(0))
        if handle in self._ended:
            return self._ended[handle]
        return Status("running" if self._running and self._running[0] == handle else "waiting")

    def cancel(self, handle: int) -> None:
        """Take a task out of the queue, or interrupt it."""
        self._waiting = [item for item in self._waiting if item[0] != handle]
        if self._running is not None and self._running[0] == handle:
            self._running[1].interrupt()
        else:
            self._ended.setdefault(handle, Status("cancelled"))

    def close(self) -> None:
        """Wait for a process that was interrupted."""
        if self._running is None:
            return
        deadline = time.monotonic() + GRACE_SECONDS
        while self._running[1].poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._running[1].kill()

    def _start(self, number: int, task: Task) -> None:
        try:
            self._running = (number, Child(task))
        except UserError as error:
            self._ended[number] = Status("ended", FAILED_TO_START, str(error))
