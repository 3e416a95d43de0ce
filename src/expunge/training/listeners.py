"""Listeners of a training: the log, the progress bar, and anything else that needs to see a step.

A listener sees each update twice: before the weights change, with the gradient of the optimizer, and after.
It may keep a state in checkpoints. One listener, `callbacks.Callbacks`, calls transformers' callbacks
(TensorBoard, W&B, a user's `TrainerCallback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.training.driver import StepCounts
from expunge.training.order import MicroBatch


@dataclass(frozen=True)
class Moment:
    """What a listener sees of an update.

    Attributes:
        step: optimizer steps done before this one.
        model: the model in training, not wrapped.
        optimizer: its optimizer, not wrapped.
        batches: the micro-batches of the step on this rank, as loaded.
        counts: counts of the step, the divisors of its means.
        learning_rate: learning rate of the first parameter group in this step.
    """

    step: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Sequence[MicroBatch]
    counts: StepCounts
    learning_rate: float


class Listener:
    """Does nothing; subclasses override what they need. Every rank calls its own listeners."""

    def on_begin(self, step: int, max_steps: int) -> None:
        """Called before the first step, with the number of steps done and the number of all steps."""

    def on_resume(self, folder: Path) -> None:
        """Called before `on_begin` if the run resumes from a checkpoint: read what `on_save` wrote."""

    def after_micro_batch(self, number: int, count: int) -> None:
        """Called after the backward pass of micro-batch `number` of `count` of the step."""

    def before_update(self, moment: Moment) -> None:
        """Called with the gradients complete and clipped, before the weights change."""

    def after_update(self, moment: Moment) -> None:
        """Called after the weights changed; the gradients still exist."""

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """Called with each record of a step: values by name."""

    def on_save(self, folder: Path) -> None:
        """Write into a checkpoint what `on_resume` needs: one file name per rank, or on rank 0 only."""

    def on_end(self) -> None:
        """Called after the last step, or when the training ends with an error."""
