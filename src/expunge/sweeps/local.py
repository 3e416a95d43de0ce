"""Jobs on this machine: one after the other, or several at a time through joblib."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Annotated

from expunge.core.errors import MissingExtraError, UserError
from expunge.core.ranges import AtLeast
from expunge.sweeps.child import GRACE_SECONDS, Child, run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task


class LocalExecutor:
    """Runs one task after the other, each in a process of its own; see `Executor`."""

    def __init__(self) -> None:
        # The environment of each worker; a task takes one and puts it back.
        self._workers: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._workers.put({})
        self._children: dict[int, Child] = {}
        self._ended: dict[int, Status] = {}
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()

    def submit(self, tasks: Sequence[Task]) -> Sequence[int]:
        """Start the first tasks."""
        threading.Thread(target=self._run_all, args=(list(tasks),), daemon=True).start()
        return range(len(tasks))

    def poll(self, handle: int) -> Status:
        """The state of a task."""
        return self._ended.get(handle) or Status("running" if handle in self._children else "waiting")

    def cancel(self, handle: int) -> None:
        """Interrupt a task that runs; one that waits never starts."""
        with self._lock:
            self._cancelled.add(handle)
            child = self._children.get(handle)
        if child is not None:
            child.interrupt()

    def close(self) -> None:
        """Wait for interrupted processes; after `GRACE_SECONDS`, kill them."""
        deadline = time.monotonic() + GRACE_SECONDS
        for child in self._children.values():
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            child.kill()

    def _run_all(self, tasks: list[Task]) -> None:
        for number, task in enumerate(tasks):
            self._run(number, task)

    def _run(self, number: int, task: Task) -> None:
        if number in self._cancelled:
            self._ended[number] = Status("cancelled")
            return
        environment = self._workers.get()
        try:
            self._ended[number] = run_task(task, lambda child: self._started(number, child), environment)
        finally:
            self._workers.put(environment)

    def _started(self, number: int, child: Child) -> None:
        with self._lock:
            self._children[number] = child
            cancelled = number in self._cancelled
        if cancelled:
            child.interrupt()


class JoblibExecutor(LocalExecutor):
    """Runs several tasks at a time, each in a process of its own.

    Args:
        workers: number of tasks that run at a time.
        gpus: number of GPUs of each task, which it shares with no other; None = each task sees all GPUs that
            this process sees.

    Raises:
        UserError: joblib is not installed, `workers` is not given, or there are too few GPUs.
    """

    def __init__(
        self,
        *,
        workers: Annotated[int, AtLeast(1)] | None = None,
        gpus: Annotated[int, AtLeast(0)] | None = None,
    ) -> None:
        super().__init__()
        try:
            import joblib
        except ImportError as error:
            raise MissingExtraError("joblib", "sweep", "the executor joblib") from error
        if workers is None:
            raise UserError(
                "the executor joblib needs workers, the number of jobs that run at a time", "add --workers N"
            )
        # The work is in processes already: threads only wait for them.
        self._parallel = joblib.Parallel(n_jobs=workers, backend="threading", batch_size=1)
        self._delayed = joblib.delayed(self._run)
        self._workers = queue.SimpleQueue()
        for environment in _environments(workers, gpus):
            self._workers.put(environment)

    def _run_all(self, tasks: list[Task]) -> None:
        self._parallel(self._delayed(number, task) for number, task in enumerate(tasks))


def _environments(workers: int, gpus: int | None) -> list[dict[str, str]]:
    """The variables of each worker's tasks, which say what GPUs they see."""
    if gpus is None:
        return [{}] * workers
    there = visible_gpus() if gpus else []
    if workers * gpus > len(there):
        raise UserError(
            f"{workers} workers with {gpus} GPUs each need {workers * gpus} GPUs,"
            f" and this machine shows {len(there)}",
            "use fewer workers, or fewer GPUs per job",
        )
    parts = (there[worker * gpus : (worker + 1) * gpus] for worker in range(workers))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
