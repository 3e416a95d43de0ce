"""Several jobs at a time on this machine, through joblib."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence

from expunge.core.errors import MissingExtraError, UserError
from expunge.sweeps.child import GRACE_SECONDS, Child, run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task


class JoblibExecutor:
    """Runs `workers` tasks at a time, each a process that a thread of joblib's looks after; see `Executor`.

    Args:
        workers: how many run at a time.
        gpus: how many of this machine's GPUs each gets, which no other task has meanwhile; None = every task
            sees what this process sees.

    Raises:
        UserError: joblib is not installed, fewer than one worker, or more GPUs are asked for than there are.
    """

    def __init__(self, *, workers: int, gpus: int | None = None) -> None:
        try:
            import joblib
        except ImportError as error:
            raise MissingExtraError("joblib", "sweep", "the executor joblib") from error
        if workers < 1:
            raise UserError(f"workers: {workers} is below 1", "give the number of jobs that run at a time")
        self._joblib, self._workers = joblib, workers
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in _slots(workers, gpus):
            self._slots.put(environment)
        self._children: dict[int, Child] = {}
        self._ended: dict[int, Status] = {}
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()

    def submit(self, tasks: Sequence[Task]) -> Sequence[int]:
        """Begin with the first tasks."""
        threading.Thread(target=self._run_all, args=(list(tasks),), daemon=True).start()
        return range(len(tasks))

    def poll(self, handle: int) -> Status:
        """Where a task stands."""
        if handle in self._ended:
            return self._ended[handle]
        return Status("running" if handle in self._children else "waiting")

    def cancel(self, handle: int) -> None:
        """Interrupt a task, or keep it from beginning."""
        with self._lock:
            self._cancelled.add(handle)
            child = self._children.get(handle)
        if child is not None:
            child.interrupt()

    def close(self) -> None:
        """Wait for processes that were interrupted."""
        deadline = time.monotonic() + GRACE_SECONDS
        for child in self._children.values():
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if child.poll() is None:
                child.kill()

    def _run_all(self, tasks: list[Task]) -> None:
        calls = (self._joblib.delayed(self._run)(number, task) for number, task in enumerate(tasks))
        # The work is in processes of their own already: threads only wait for them.
        self._joblib.Parallel(n_jobs=self._workers, backend="threading", batch_size=1)(calls)

    def _run(self, number: int, task: Task) -> None:
        if number in self._cancelled:
            self._ended[number] = Status("cancelled")
            return
        slot = self._slots.get()
        try:
            code = run_task(task, lambda child: self._started(number, child), slot)
        finally:
            self._slots.put(slot)
        self._ended[number] = Status("ended", code)

    def _started(self, number: int, child: Child) -> None:
        with self._lock:
            self._children[number] = child
            cancelled = number in self._cancelled
        if cancelled:
            child.interrupt()


def _slots(workers: int, gpus: int | None) -> list[dict[str, str]]:
    """The variables of each worker's tasks: which GPUs they see."""
    if gpus is None:
        return [{}] * workers
    if gpus == 0:
        return [{"CUDA_VISIBLE_DEVICES": ""}] * workers
    there = visible_gpus()
    if workers * gpus > len(there):
        raise UserError(
            f"{workers} workers with {gpus} GPUs each need {workers * gpus} GPUs,"
            f" and this machine shows {len(there)}",
            "take fewer workers or GPUs",
        )
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(there[worker * gpus : (worker + 1) * gpus])}
        for worker in range(workers)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
