"""Jobs on a Ray cluster: one core task each, which runs the command line as a process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from expunge.core.errors import MissingExtraError, UserError
from expunge.core.ranges import AtLeast
from expunge.sweeps.child import run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task


class RayExecutor:
    """Runs each task as a Ray task; Ray chooses the machine and its GPUs. See `Executor`.

    All machines must share the storage of the run folders and of the working folder. Ray writes a token for
    its own connections to `~/.ray/auth_token`.

    Args:
        gpus: GPUs of each task; required on a cluster with GPUs.
        cpus: CPU cores of each task; without GPUs, they limit the number of tasks that run at a time.
        address: of the cluster; None = the one in RAY_ADDRESS, else a new cluster of this machine alone.

    Raises:
        UserError: ray is not installed, no cluster can be reached, or `gpus` is required and not given.
    """

    def __init__(
        self,
        *,
        gpus: Annotated[float, AtLeast(0)] | None = None,
        cpus: Annotated[float, AtLeast(0)] = 1,
        address: str | None = None,
    ) -> None:
        # The user has not agreed to send statistics.
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
                    "start one with `ray start --head`, or leave the address out; if it asks for a token, set"
                    " RAY_AUTH_MODE=token",
                ) from error
        there = ray.cluster_resources().get("GPU", 0)
        if gpus is None and there:
            self.close()
            raise UserError(
                f"the cluster has {there:g} GPUs, and --gpus is not given: no job would get one",
                "add --gpus K, the number of GPUs of each job; --gpus 0 for jobs on CPUs",
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
        """The state of a task; a new line in its log means that it runs."""
        ready, _ = self._ray.wait([handle], timeout=0)
        if not ready:
            log = Path(self._tasks[handle].log)
            begun = log.is_file() and log.stat().st_mtime >= self._submitted
            return Status("running" if begun else "waiting")
        try:
            ended: Status = self._ray.get(handle)
            return ended
        except self._ray.exceptions.TaskCancelledError:
            return Status("cancelled")
        except self._ray.exceptions.RayError as error:
            return Status("ended", None, str(error).splitlines()[-1])

    def cancel(self, handle: Any) -> None:
        """Raise KeyboardInterrupt in the task, which interrupts the process."""
        self._ray.cancel(handle, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._starts:
            self._ray.shutdown()


def _run(task: Task) -> Status:
    """Run a task in a Ray worker."""
    return run_task(task, lambda child: None)
