"""Transformers' callbacks: those of `report_to` and a user's own, and what transformers leaves open about its loggers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
)
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState

from expunge.training.listeners import Listener, Moment


class Callbacks(Listener):
    """Calls transformers' callbacks at their events, and keeps what they share.

    Args:
        args: of the training; `report_to` names loggers.
        model: in training, not wrapped.
        tokenizer: of the model.
        own: a user's callbacks.
        boards: see `place_boards`; None = transformers' own place.

    Attributes:
        handler: transformers' own.
        state: where the training stands, as callbacks know it.
        control: what they have asked for.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        own: Sequence[TrainerCallback],
        boards: Path | None,
    ) -> None:
        self.args, self.state, self.control = args, TrainerState(), TrainerControl()
        self.handler = CallbackHandler(  # type: ignore[no-untyped-call]  # transformers has no types there
            callbacks_of(args, own, boards), model, tokenizer, None, None
        )

    def fire(self, event: str, *values: Any) -> None:
        """Call an event of all callbacks, with the values that it has of its own (metrics, logs)."""
        self.control = getattr(self.handler, event)(self.args, self.state, self.control, *values)

    def after_micro_batch(self, number: int, count: int) -> None:
        """Between two micro-batches of a step."""
        if number < count - 1:
            self.fire("on_substep_end")

    def before_update(self, moment: Moment) -> None:
        """Between clipping and the optimizer's step."""
        self.fire("on_pre_optimizer_step")

    def after_update(self, moment: Moment) -> None:
        """Between the optimizer's step and the end of the gradients."""
        self.fire("on_optimizer_step")

    def states(self) -> dict[str, Any]:
        """The states of the callbacks that keep one, by class; of several of a class, a list in their order."""
        found: dict[str, list[Any]] = {}
        for item in self._stateful():
            found.setdefault(type(item).__name__, []).append(item.state())
        return {name: states[0] if len(states) == 1 else states for name, states in found.items()}

    def restore(self) -> None:
        """Give the callbacks the states that `state` holds of them."""
        stored = {
            name: list(found) if isinstance(found, list) else [found]
            for name, found in cast(dict[str, Any], self.state.stateful_callbacks).items()
        }
        for item in self._stateful():
            if waiting := stored.get(type(item).__name__):
                found = waiting.pop(0)
                for name, value in {**found["args"], **found["attributes"]}.items():
                    setattr(item, name, value)

    def _stateful(self) -> list[Any]:
        return [item for item in (*self.handler.callbacks, self.control) if isinstance(item, ExportableState)]


class WandbEnd(TrainerCallback):
    """Ends the run that transformers began at wandb, so that the next training of this process is not written into it.

    transformers (5.23) leaves it open until the process ends. One that was open before the training is
    somebody else's, and stays.
    """

    def __init__(self) -> None:
        import wandb

        self.wandb = wandb
        self.was_open = wandb.run is not None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close it."""
        if not self.was_open and self.wandb.run is not None:
            self.wandb.finish()


def callbacks_of(
    args: TrainingArguments, own: Sequence[TrainerCallback], boards: Path | None
) -> list[TrainerCallback]:
    """Transformers' callbacks of a training, in the order in which they are called.

    Args:
        args: of the training; `report_to` names loggers.
        own: a user's.
        boards: see `place_boards`; None = transformers' own place.
    """
    loggers = [callback() for callback in get_reporting_integration_callbacks(args.report_to)]  # type: ignore[no-untyped-call]
    if boards is not None:
        place_boards(loggers, boards)
    ends = [WandbEnd()] if any(isinstance(callback, WandbCallback) for callback in loggers) else []
    return [DefaultFlowCallback(), *loggers, *own, *ends]


def place_boards(callbacks: Iterable[TrainerCallback], folder: Path) -> None:
    """Have TensorBoard's files written to a folder, unless the environment variable TENSORBOARD_LOGGING_DIR says where.

    transformers 5 took `logging_dir` out of its arguments; without it the files are in `runs/` beside the
    checkpoints.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            callback.logging_dir = str(folder)
