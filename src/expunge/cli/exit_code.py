"""What a command ends with: an exit code, and a message where the user can mend something."""

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
    """A block whose `UserError`, SIGUSR2 or ctrl-C becomes a message and an exit code. Other errors pass.

    Attributes:
        value: 0, 2 after a `UserError`, 75 after SIGUSR2, 130 after ctrl-C.
    """

    value = 0

    def __enter__(self) -> ExitCode:
        """Begin the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Print the message of an error that is handled here; True ends that error."""
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
            print(f"\n{message}, if trainer.args.save_strategy has written one", file=sys.stderr)
            self.value = INTERRUPTED
        elif isinstance(error, BrokenPipeError):
            # The reader (`| head`) has gone. Nobody reads what is left, and python must not flush it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            return False
        return True


def _reports() -> bool:
    """Whether this process of a launch reports a fault.

    Of processes that have not met yet, all find the same fault, and the first of each machine reports it.
    """
    torch = sys.modules.get("torch")
    met = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if met or os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    # A launcher stops all processes as soon as one has failed: let the first one speak.
    time.sleep(SILENCE_SECONDS)
    return False
