"""Jobs on a SLURM cluster, through submitit: one array, each task requeued when its time is over."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, UserError
from expunge.core.preemption import EXIT_PREEMPTED
from expunge.sweeps.child import Child, run_task
from expunge.sweeps.executor import Status
from expunge.sweeps.job import Task

CONTINUES = (0, EXIT_PREEMPTED, -signal.SIGUSR2)
"""Exit codes after SIGUSR2 with which a task is queued again; -SIGUSR2: the run had not begun."""


class SubmititExecutor:
    """Submits the tasks as one job array; see `Executor`.

    Before a task's time is over, or when it is preempted, SLURM sends SIGUSR2. The run writes a checkpoint
    and ends, the task is queued again, and the same command continues. submitit keeps what it submits, task
    by task, as pickle files in its own folder; nothing of ours reads them.

    Args:
        timeout_min: minutes that a task may take until it is queued again.
        workers: how many tasks run at a time; None = as many as the cluster lets.
        gpus: GPUs a task; None = what the cluster gives by default.
        requeues: how often a task may use up its time before it is given up.
        cluster: "slurm", or "local" = submitit's stand-in on this machine, which starts all tasks at once.
        folder: submitit's own files, on storage that all nodes share.
        parameters: further parameters of `submitit.AutoExecutor.update_parameters`, such as
            `slurm_partition`, `mem_gb`, `cpus_per_task`, `slurm_signal_delay_s`.

    Raises:
        UserError: submitit is not installed, there is no such cluster here, or a parameter that it does not
            know.
    """

    def __init__(
        self,
        *,
        timeout_min: int | None = None,
        workers: int | None = None,
        gpus: int | None = None,
        requeues: int = 3,
        cluster: str = "slurm",
        folder: str = "saves/.submitit",
        **parameters: Any,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("submitit", "slurm", "the executor submitit") from error
        if timeout_min is None:
            raise UserError(
                "the executor submitit needs timeout_min, the minutes until a job is requeued",
                "add --set timeout_min=240, or what the partition allows",
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
                "see `submitit.AutoExecutor.update_parameters`; those of SLURM begin with slurm_",
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
            raise UserError(f"SLURM refuses the jobs: {said}", "change the settings that it names") from error
        return jobs

    def poll(self, handle: Any) -> Status:
        """Where a task stands; SLURM is asked every half minute at most."""
        if not handle.done():
            return Status("running" if handle.state == "RUNNING" else "waiting")
        if handle.job_id in self._cancelled:
            # submitit would wait for a result that may never come.
            return Status("cancelled")
        try:
            return Status("ended", handle.result())
        except (
            self._submitit.core.utils.FailedJobError,
            self._submitit.core.utils.UncompletedJobError,
        ) as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            return Status("ended", None, said[-1] if said else "the job ended without a result")

    def cancel(self, handle: Any) -> None:
        """`scancel`."""
        self._cancelled.add(handle.job_id)
        handle.cancel(check=False)

    def close(self) -> None:
        """Nothing is held: the jobs are SLURM's."""


class Requeued:
    """What submitit runs on the node: the task's process, and what SIGUSR2 means for it."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def __call__(self, task: Task) -> int:
        """Run the task; gives its exit code."""
        return run_task(task, self._started)

    def checkpoint(self, task: Task) -> Any:
        """Called by submitit on SIGUSR2, between two steps of `__call__`: what is to be queued, or None."""
        import submitit

        if self._child is not None:
            self._child.preempt()
            if self._child.wait_in_handler() not in CONTINUES:
                return None
        return submitit.helpers.DelayedSubmission(Requeued(), task)

    def _started(self, child: Child) -> None:
        self._child = child
