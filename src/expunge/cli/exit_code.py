"""The end of a command: an exit code, and a message if the user can fix the error."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from expunge.cli.console import print_faults
from expunge.core.errors import UserError
from expunge.core.preemption import EXIT_PREEMPTED, Preempted

FAULTY = 2
INTERRUPTED = 130
SILENCE_SECONDS = 5


class ExitCode:
    """A block that turns a `UserError`, SIGUSR2 or Ctrl-C into a message and an exit code. Other errors pass.

    Attributes:
        value: 0, 2 after a `UserError`, 75 after SIGUSR2, 130 after Ctrl-C.
    """

    value = 0

    def __enter__(self) -> ExitCode:
        """Begin the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Print the message of an error that is handled here; True stops this error."""
        if isinstance(error, UserError):
            if _reports():
                print_faults(error)
            self.value = FAULTY
        elif isinstance(error, Preempted):
            message = "stopped by SIGUSR2; the same command continues from the newest complete checkpoint"
            print(f"\n{message}", file=sys.stderr)
            self.value = EXIT_PREEMPTED
        elif isinstance(error, KeyboardInterrupt):
            message = "interrupted; the same command continues from the newest complete checkpoint"
            # Ctrl-C reaches every process of a launch.
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"\n{message}, if there is one (see trainer.args.save_strategy)", file=sys.stderr)
            self.value = INTERRUPTED
        elif isinstance(error, BrokenPipeError):
            # The reader (`| head`) has closed the pipe, so Python must not flush the rest at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            return False
        return True


def _reports() -> bool:
    """Whether this process of a distributed run reports a fault.

    Before the processes have connected, all of them find the same fault, and only the first one of each
    machine reports it.
    """
    torch = sys.modules.get("torch")
    met = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if met or os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    # A launcher stops all processes as soon as one has failed, so the others wait for the report.
    time.sleep(SILENCE_SECONDS)
    return False
