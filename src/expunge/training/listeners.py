"""What may watch a training: the log, the progress bar, and whatever else wants to see a step.

A listener sees each update twice: before the weights move, with the gradient that the optimizer will see, and
after. It may keep a state in checkpoints. Transformers' own callbacks (TensorBoard, W&B, a user's
`TrainerCallback`) are not
listeners: they are called at their events, see `loop`.
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
    """What a listener is shown of an update.

    Attributes:
        step: optimizer steps done before this one.
        model: the model in training, not wrapped.
        optimizer: its optimizer, not wrapped.
        batches: the micro-batches of the step on this rank, as loaded.
        counts: what the step's means are over.
        learning_rate: of the first parameter group, in this step.
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
        """Before the first step: how many are done, and how many there will be."""

    def on_resume(self, folder: Path) -> None:
        """Before `on_begin`, where the run goes on from a checkpoint: read back what `on_save` wrote."""

    def after_micro_batch(self, number: int, count: int) -> None:
        """Micro-batch `number` of the step's `count` is back-propagated."""

    def before_update(self, moment: Moment) -> None:
        """Gradients are complete and clipped, the weights have not moved."""

    def after_update(self, moment: Moment) -> None:
        """The weights have moved, the gradients are still there."""

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """A record was made at a step: values by name."""

    def on_save(self, folder: Path) -> None:
        """A checkpoint is being filled: write into it what `on_resume` will need. One name a rank, or rank 0 alone."""

    def on_end(self) -> None:
        """After the last step, or when the training ends with an error."""
