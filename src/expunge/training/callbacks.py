"""What watches the training loop: the progress bar or line, and the file of records."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler

from expunge.training.records import RecordLog

logger = logging.getLogger(__name__)


class RecordCallback(TrainerCallback):
    """Writes every record that the loop logs to the run's file of records."""

    def __init__(self, records: RecordLog) -> None:
        self.records = records

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the record."""
        if state.is_world_process_zero:
            self.records.append({"step": state.global_step, **(logs or {})})


class ProgressCallback(TrainerCallback):
    """A bar with rate, ETA and terms on a terminal; a line a record, with the same facts, elsewhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.begun, self.first = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step that the run resumes from."""
        self.begun, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero and not args.disable_tqdm and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the record."""
        if not state.is_world_process_zero:
            return
        shown = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in (logs or {}).items()
        }
        if self.bar is not None and "loss" in shown:
            self.bar.set_postfix(shown)
        else:
            facts = " ".join(f"{key}={value}" for key, value in shown.items())
            logger.info("step %d/%d %s eta=%s", state.global_step, state.max_steps, facts, self._eta(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _eta(self, state: TrainerState) -> str:
        done = state.global_step - self.first
        if done <= 0:
            return "?"
        left = int((time.monotonic() - self.begun) / done * (state.max_steps - state.global_step))
        return f"{left // 3600:d}:{left % 3600 // 60:02d}:{left % 60:02d}"


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


def arrange_loggers(handler: CallbackHandler, boards: Path | None) -> None:
    """See to what transformers leaves open about its loggers.

    Args:
        handler: the trainer's, with the callbacks that `report_to` has brought.
        boards: see `place_boards`.
    """
    if boards is not None:
        place_boards(handler.callbacks, boards)
    if any(isinstance(callback, WandbCallback) for callback in handler.callbacks):
        handler.add_callback(WandbEnd())  # type: ignore[no-untyped-call]  # transformers has no types there


def place_boards(callbacks: Iterable[TrainerCallback], folder: Path) -> None:
    """Have TensorBoard's files written to a folder, unless the environment variable TENSORBOARD_LOGGING_DIR says where.

    transformers 5 took `logging_dir` out of its arguments; without it the files are in `runs/` beside the
    checkpoints.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            callback.logging_dir = str(folder)
