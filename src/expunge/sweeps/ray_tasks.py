"""Jobs on a Ray cluster: one core task each, which runs the command line as a process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, UserError
from expunge.sweeps.child import Child, run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task


class RayExecutor:
    """Runs each task as a Ray task; Ray chooses the machine and its GPUs. See `Executor`.

    The run folders, and the working folder, lie on storage that all machines share. Ray writes a token for
    its own connections to `~/.ray/auth_token`.

    Args:
        gpus: GPUs a task; has to be given on a cluster that has some.
        cpus: CPU cores a task, which is how many run at a time on a cluster without GPUs.
        address: of the cluster; None = what RAY_ADDRESS says, else a cluster of this machine alone.

    Raises:
        UserError: ray is not installed, no cluster can be reached, or it has GPUs and `gpus` is not given.
    """

    def __init__(self, *, gpus: float | None = None, cpus: float = 1, address: str | None = None) -> None:
        # Nobody who runs jobs has agreed to have statistics sent.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "the executor ray") from error
        self._ray = ray
        self._starts = not ray.is_initialized()
        if self._starts:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"ray cannot reach a cluster at {address or 'RAY_ADDRESS'}: {error}",
                    "start one with `ray start --head`, or leave the address out; where it asks for a token,"
                    " set RAY_AUTH_MODE=token",
                ) from error
        there = ray.cluster_resources().get("GPU", 0)
        if gpus is None and there:
            self.close()
            raise UserError(
                f"the cluster has {there:g} GPUs, and a job gets none unless it asks",
                "add --gpus K, the GPUs a job takes; --gpus 0 for jobs on CPUs",
            )
        self._run = ray.remote(num_cpus=cpus, num_gpus=gpus or 0, max_retries=0)(_run)
        self._tasks: dict[Any, Task] = {}
        self._submitted = 0.0

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Submit the tasks."""
        self._submitted = time.time()
        handles = [self._run.remote(task) for task in tasks]
        self._tasks = dict(zip(handles, tasks, strict=True))
        return handles

    def poll(self, handle: Any) -> Status:
        """Where a task stands; one that has begun has written to its log."""
        ready, _ = self._ray.wait([handle], timeout=0)
        if not ready:
            log = Path(self._tasks[handle].log)
            begun = log.is_file() and log.stat().st_mtime >= self._submitted
            return Status("running" if begun else "waiting")
        try:
            return Status("ended", self._ray.get(handle))
        except self._ray.exceptions.TaskCancelledError:
            return Status("cancelled")
        except self._ray.exceptions.RayError as error:
            return Status("ended", None, str(error).splitlines()[-1])

    def cancel(self, handle: Any) -> None:
        """Raise KeyboardInterrupt in the task, which interrupts the process."""
        self._ray.cancel(handle, force=False)

    def close(self) -> None:
        """Leave the cluster, and end it where it was started here."""
        if self._starts:
            self._ray.shutdown()


def _run(task: Task) -> int:
    """What a Ray worker runs."""
    children: list[Child] = []
    return run_task(task, children.append)
