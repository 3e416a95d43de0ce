"""A training that SIGUSR2 stops: a checkpoint at the next step boundary, then the end."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl

from expunge.core.preemption import PREEMPTION, Preempted


class StopWhenPreempted(TrainerCallback):
    """Asks for a checkpoint after the step in which the signal came, and stops when it is written.

    It does not set `should_training_stop`: checkpoints store this flag, and a resumed run could restore it.
    """

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """From now on, the signal only sets a flag."""
        PREEMPTION.defer()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if PREEMPTION.asked:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is complete: stop.

        Raises:
            Preempted: the signal has come.
        """
        if PREEMPTION.asked:
            raise Preempted

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """After the last step, the signal stops the run at once again."""
        PREEMPTION.resume()
