"""Jobs on a SLURM cluster, through submitit: one array; a task whose time is over is queued again."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from expunge.core.errors import MissingExtraError, UserError
from expunge.core.preemption import EXIT_PREEMPTED
from expunge.core.ranges import AtLeast
from expunge.sweeps.child import Child, run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task

CONTINUES = (0, EXIT_PREEMPTED, -signal.SIGUSR2)
"""A task with one of these exit codes after SIGUSR2 is queued again; -SIGUSR2: the run had not started."""


class SubmititExecutor:
    """Submits the tasks as one job array; see `Executor`.

    SLURM sends SIGUSR2 before a task's time is over, or when it preempts the task. The run writes a
    checkpoint and ends, the task is queued again, and the same command continues. submitit stores each task
    as a pickle file in its own folder; our code reads none of them.

    Args:
        timeout_min: time limit of a task in minutes; then it is queued again.
        workers: number of tasks that run at a time; None = the cluster decides.
        gpus: GPUs of each task; None = the cluster's default.
        requeues: how many times a task may reach its time limit before it is given up.
        cluster: "slurm", or "local" = submitit's replacement on this machine, which starts all tasks at once.
        folder: submitit's own files, on storage that all nodes share.
        parameters: further parameters of `submitit.AutoExecutor.update_parameters`, such as
            `slurm_partition`, `mem_gb`, `cpus_per_task`, `slurm_signal_delay_s`.

    Raises:
        UserError: submitit is not installed, or it refuses the cluster or a parameter.
    """

    def __init__(
        self,
        *,
        timeout_min: Annotated[int, AtLeast(1)] | None = None,
        workers: Annotated[int, AtLeast(1)] | None = None,
        gpus: Annotated[int, AtLeast(0)] | None = None,
        requeues: Annotated[int, AtLeast(0)] = 3,
        cluster: Literal["slurm", "local"] = "slurm",
        folder: str = "saves/.submitit",
        **parameters: Any,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("submitit", "slurm", "the executor submitit") from error
        if timeout_min is None:
            raise UserError(
                "the executor submitit needs timeout_min, the time limit of a job in minutes",
                "add --set timeout_min=240, or the limit of the partition",
            )
        self._submitit = submitit
        chosen = {"timeout_min": timeout_min, "stderr_to_stdout": True, **parameters}
        if workers is not None:
            chosen["slurm_array_parallelism"] = workers
        if gpus is not None:
            chosen["gpus_per_node"] = gpus
        try:
            made = submitit.AutoExecutor(
                Path(folder).absolute(), cluster=cluster, **{f"{cluster}_max_num_timeout": requeues}
            )
            made.update_parameters(**chosen)
        except (NameError, ValueError, TypeError, AssertionError, RuntimeError) as error:
            raise UserError(
                f"submitit refuses these settings: {error}",
                "see `submitit.AutoExecutor.update_parameters`; SLURM's own settings begin with slurm_",
            ) from error
        self._executor = made
        self._cancelled: set[str] = set()

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Submit the array.

        Raises:
            UserError: SLURM refuses it.
        """
        utils = self._submitit.core.utils
        try:
            jobs: Sequence[Any] = self._executor.map_array(Requeued(), list(tasks))
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            said = str(error).strip() or "sbatch gave no reason"
            raise UserError(
                f"SLURM refuses the jobs: {said}", "correct the settings that it names"
            ) from error
        return jobs

    def poll(self, handle: Any) -> Status:
        """The state of a task; submitit asks SLURM every half minute at most."""
        if not handle.done():
            return Status("running" if handle.state == "RUNNING" else "waiting")
        if handle.job_id in self._cancelled:
            # submitit would wait for a result that may never come.
            return Status("cancelled")
        utils = self._submitit.core.utils
        try:
            ended: Status = handle.result()
        except (utils.FailedJobError, utils.UncompletedJobError) as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            return Status("ended", None, said[-1] if said else "the job ended without a result")
        return ended

    def cancel(self, handle: Any) -> None:
        """`scancel`."""
        self._cancelled.add(handle.job_id)
        handle.cancel(check=False)

    def close(self) -> None:
        """Nothing to release: SLURM has the jobs."""


class Requeued:
    """What submitit runs on the node: the process of a task, which SIGUSR2 stops and queues again."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def __call__(self, task: Task) -> Status:
        """Run the task to its end."""
        return run_task(task, lambda child: setattr(self, "_child", child))

    def checkpoint(self, task: Task) -> Any:
        """Called by submitit on SIGUSR2: stop the process, and return what to queue again, or None."""
        import submitit

        if self._child is not None:
            self._child.preempt()
            if self._child.wait_in_handler() not in CONTINUES:
                return None
        return submitit.helpers.DelayedSubmission(Requeued(), task)
