"""A job's process on this machine: started, asked to stop, ended."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from expunge.core.errors import UserError
from expunge.core.files import reporting_write_errors
from expunge.sweeps.executor import Status
from expunge.sweeps.job import HEADER, Task

GRACE_SECONDS = 30.0
"""Time for an interrupted process to end, before it is killed."""
FAILED_TO_START = 127
NO_VARIABLES: Mapping[str, str] = {}
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[1]} in {os.getcwd()}: {error.strerror}")
"""
"""Starts a command that reacts to Ctrl-C. A Ray worker blocks it, a shell's background job ignores it, and a
child inherits both."""
LAUNCHERS = [
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
]
"""Variables of a launcher with several processes; a job must not inherit them."""


class Child:
    """The process of a task.

    It has its own process group: Ctrl-C in the terminal reaches only the process that runs the jobs, which
    then ends them in order. While it runs it holds a lock on its log, so that no second process uses the
    same run folder.

    Args:
        task: what to run.
        environment: variables that replace those of the task.

    Raises:
        UserError: the command does not exist, the log cannot be written, or the job still runs.
    """

    def __init__(self, task: Task, environment: Mapping[str, str] = NO_VARIABLES) -> None:
        path = Path(task.log)
        with reporting_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
        with log:
            try:
                # The process inherits the open file and its lock.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{shlex.join(task.words)} still runs: another process writes {task.log}",
                    "wait until it ends, or stop it",
                ) from error
            except OSError:
                pass  # The file system has no locks.
            command = shlex.join(task.words).replace("\n", "\\n")
            log.write(f"{HEADER}{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {command}\n".encode())
            log.flush()
            inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
            try:
                self.process = subprocess.Popen(
                    command_of(task.words),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=task.cwd,
                    env={**inherited, **task.environment, **environment},
                    start_new_session=True,
                )
            except OSError as error:
                message = f"cannot run {task.words[0]} in {task.cwd}: {error.strerror}"
                log.write(f"{message}\n".encode())
                raise UserError(message, "check the first word of the command and the folder") from error

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self.process.poll()

    def preempt(self) -> None:
        """Ask it to write a checkpoint and end: SIGUSR2."""
        self._signal(signal.SIGUSR2)

    def interrupt(self) -> None:
        """Ask it to end now: Ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its children at once; no effect if it ended already."""
        if self.poll() is not None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        """Wait until it ends, and return the exit code. Ctrl-C interrupts it, and later kills it."""
        deadline: float | None = None
        while (code := self.poll()) is None:
            try:
                if deadline is not None and time.monotonic() > deadline:
                    self.kill()
                time.sleep(0.05)
            except KeyboardInterrupt:
                self.interrupt()
                deadline = time.monotonic() + GRACE_SECONDS
        return code

    def wait_in_handler(self) -> int | None:
        """`wait` for a signal handler, which may interrupt `wait`; a signal has a negative code."""
        try:
            # WNOWAIT: `subprocess` collects the exit code; it may hold its lock in the interrupted frame.
            ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return self.process.returncode
        assert ended is not None, "waitid without WNOHANG waits"
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _signal(self, number: int) -> None:
        # Not to the whole group: SIGUSR2 would end the worker processes of a data loader.
        if self.poll() is None:
            self.process.send_signal(number)


def command_of(words: tuple[str, ...]) -> list[str]:
    """The command to start; `expunge` is the one of this Python, on any machine."""
    command = [sys.executable, "-m", *words] if words[0] == "expunge" else list(words)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    if signal.SIGINT in blocked or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        command = [sys.executable, "-I", "-c", HEARS_CTRL_C, *command]
    return command


def run_task(
    task: Task, started: Callable[[Child], None], environment: Mapping[str, str] = NO_VARIABLES
) -> Status:
    """Run a task to its end.

    Args:
        task: what to run.
        started: called with the process.
        environment: variables that replace those of the task.

    Returns:
        How it ended; with `FAILED_TO_START` and the reason if there was no process.
    """
    try:
        child = Child(task, environment)
    except UserError as error:
        return Status("ended", FAILED_TO_START, str(error))
    started(child)
    return Status("ended", child.wait())
