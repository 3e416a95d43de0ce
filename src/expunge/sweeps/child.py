"""A job's process on this machine: started, asked to stop, ended."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from expunge.core.errors import UserError
from expunge.core.files import reporting_write_errors
from expunge.sweeps.job import HEADER, Task

GRACE_SECONDS = 30.0
"""How long a process that was interrupted may take to end, before it is killed."""
LOOK_SECONDS = 0.05
FAILED_TO_START = 127
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[1]} in {os.getcwd()}: {error.strerror}")
"""
"""Starts a command that hears ctrl-C: where this process blocks it (a Ray worker) or ignores it (a background
job of a shell), a child would too."""
LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Variables by which a process takes itself for one of several; a job is a launch of its own."""


class Child:
    """The process of a task.

    It is the first of a process group of its own: ctrl-C in the terminal reaches only the process that looks
    after the jobs, which then ends them in order. While it lives it holds a lock on its log, so that a second
    process is never started on the same run folder.

    Args:
        task: what to run.
        environment: variables set over the task's own.

    Raises:
        UserError: the command is not there, the log cannot be written, or the job still runs.
    """

    def __init__(self, task: Task, environment: dict[str, str] | None = None) -> None:
        path = Path(task.log)
        with reporting_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
        with log:
            try:
                # The process inherits the open file, and the lock with it.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{shlex.join(task.words)} still runs: another process writes {task.log}",
                    "wait until it has ended, or end it",
                ) from error
            except OSError:
                # A file system without locks.
                pass
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
                    env={**inherited, **task.environment, **(environment or {})},
                    start_new_session=True,
                )
            except OSError as error:
                message = f"cannot run {task.words[0]} in {task.cwd}: {error.strerror}"
                log.write(f"{message}\n".encode())
                raise UserError(message, "check the command's first word and the folder") from error

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self.process.poll()

    def preempt(self) -> None:
        """Ask it to write a checkpoint and end: SIGUSR2."""
        self._signal(signal.SIGUSR2)

    def interrupt(self) -> None:
        """Ask it to end now: ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        """Until it has ended; gives the exit code. Ctrl-C interrupts it, and later kills it."""
        deadline: float | None = None
        while (code := self.poll()) is None:
            try:
                if deadline is not None and time.monotonic() > deadline:
                    self.kill()
                time.sleep(LOOK_SECONDS)
            except KeyboardInterrupt:
                self.interrupt()
                deadline = time.monotonic() + GRACE_SECONDS
        return code

    def wait_in_handler(self) -> int | None:
        """`wait`, as a signal handler may call it while `wait` itself runs; a signal's code is negative."""
        try:
            # Without reaping: `subprocess` may hold its own lock in the frame that was interrupted.
            ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return self.process.returncode
        assert ended is not None, "waitid without WNOHANG waits"
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _signal(self, number: int) -> None:
        # Not to the whole group: worker processes of a data loader need no signal, and would die of SIGUSR2.
        if self.poll() is None:
            self.process.send_signal(number)


def command_of(words: tuple[str, ...]) -> list[str]:
    """The command that is started: `expunge` is that of the Python which starts it, on any machine."""
    own = [sys.executable, "-m", "expunge.cli.main"]
    command = [*own, *words[1:]] if words[0] == "expunge" else list(words)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    if signal.SIGINT in blocked or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        command = [sys.executable, "-I", "-c", HEARS_CTRL_C, *command]
    return command


def run_task(task: Task, started: Callable[[Child], None], environment: dict[str, str] | None = None) -> int:
    """Run a task to its end.

    Args:
        task: what to run.
        started: called with the process.
        environment: variables set over the task's own.

    Returns:
        The exit code; `FAILED_TO_START` where there was no process, with the reason in the log.
    """
    try:
        child = Child(task, environment)
    except UserError as error:
        with Path(task.log).open("a", encoding="utf-8") as log:
            log.write(f"{error}\n")
        return FAILED_TO_START
    started(child)
    return child.wait()
