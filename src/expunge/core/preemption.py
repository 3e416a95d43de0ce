"""SIGUSR2, with which a scheduler announces the end of a job: a run stops so that it can continue later.

SLURM sends it before a time limit (`--signal=USR2@120`). A training writes a checkpoint at its next step
boundary and then stops; any other part of a run stops at once, since its results are written as they are
made. Either way the process ends with `EXIT_PREEMPTED`, and the same command continues the run.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_PREEMPTED = 75
"""Exit code of a run that the signal stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""


class Preempted(KeyboardInterrupt):
    """The run was asked to stop by SIGUSR2, and can be continued."""


@dataclass
class Preemption:
    """The state of the signal; a process has one.

    Attributes:
        asked: whether the signal came.
        deferred: whether a training runs, which checks `asked` after each step.
    """

    asked: bool = False
    deferred: bool = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Set `asked`; without a training, stop at once.

        Raises:
            Preempted: no training is running.
        """
        self.asked = True
        if not self.deferred:
            raise Preempted

    def defer(self) -> None:
        """Begin a training, which checks `asked`."""
        self.deferred = True

    def resume(self) -> None:
        """End a training.

        Raises:
            Preempted: the signal came after the last check.
        """
        self.deferred = False
        if self.asked:
            raise Preempted


PREEMPTION = Preemption()


@contextmanager
def preemptible() -> Iterator[None]:
    """While open, SIGUSR2 stops the run so that it can continue later.

    Without the block, the signal ends the process, which is its default. The default also stays outside the
    main thread, and in a launch of several processes, because these would first have to agree on the step.
    """
    number = getattr(signal, "SIGUSR2", None)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if number is None or not alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    PREEMPTION.asked = PREEMPTION.deferred = False
    before = signal.signal(number, PREEMPTION.on_signal)
    try:
        yield
    finally:
        signal.signal(number, before)
        PREEMPTION.asked = PREEMPTION.deferred = False
