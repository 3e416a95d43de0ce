"""Transformers' callbacks: the loggers of `report_to` with two corrections, and the user's own callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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

from expunge.config.listeners import LISTENERS
from expunge.core.binding import Bound
from expunge.training.listeners import Listener, Moment


class Callbacks(Listener):
    """Calls transformers' callbacks at their events, and keeps what they share.

    Args:
        args: arguments of the training; `report_to` names loggers.
        model: the model in training, not wrapped.
        tokenizer: tokenizer of the model.
        own: the user's callbacks.
        boards: folder of TensorBoard's files; None = transformers' default.

    Attributes:
        handler: transformers' own object.
        state: step, epoch and history of the training.
        control: the requests of the callbacks.
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
        """Call an event of all callbacks, with the event's own values (metrics, logs)."""
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
        """The states of all stateful callbacks, by class name; a list if a class has several callbacks."""
        found: dict[str, list[Any]] = {}
        for item in self._stateful():
            found.setdefault(type(item).__name__, []).append(item.state())
        return {name: states[0] if len(states) == 1 else states for name, states in found.items()}

    def restore(self) -> None:
        """Give the callbacks their states, which `state` contains."""
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
    """Ends the wandb run that transformers began, so that the next training in this process gets its own.

    transformers (5.23) leaves it open until the process ends. A run that was open before the training stays
    open.
    """

    def __init__(self) -> None:
        import wandb

        self.wandb = wandb
        self.was_open = wandb.run is not None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run."""
        if not self.was_open and self.wandb.run is not None:
            self.wandb.finish()


def callbacks_of(
    args: TrainingArguments, own: Sequence[TrainerCallback], boards: Path | None
) -> list[TrainerCallback]:
    """All callbacks of a training, in the order of their calls; arguments as for `Callbacks`."""
    loggers = [callback() for callback in get_reporting_integration_callbacks(args.report_to)]  # type: ignore[no-untyped-call]
    # transformers 5 removed the argument `logging_dir`; it writes to `runs/` beside the checkpoints.
    if boards is not None and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
        for callback in loggers:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = str(boards)
    ends = [WandbEnd()] if any(isinstance(callback, WandbCallback) for callback in loggers) else []
    return [DefaultFlowCallback(), *loggers, *own, *ends]


def own_listeners(bound: Mapping[str, Bound]) -> tuple[list[Listener], list[TrainerCallback]]:
    """Build the listeners of `trainer.listeners`: ours, and transformers' callbacks.

    Raises:
        UserError: a module cannot be imported.
    """
    made = [item.load()(**item.kwargs) for key, item in bound.items() if key.rpartition(".")[0] == LISTENERS]
    callbacks = [item for item in made if isinstance(item, TrainerCallback)]
    return [item for item in made if item not in callbacks], callbacks
