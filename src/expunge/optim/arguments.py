"""The part of the training arguments that an optimizer reads."""

from __future__ import annotations

from typing import Protocol


class OptimizerArgs(Protocol):
    """What an optimizer reads of `TrainingArguments` or a similar object."""

    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def adam_beta1(self) -> float: ...  # noqa: D102
    @property
    def adam_beta2(self) -> float: ...  # noqa: D102
    @property
    def adam_epsilon(self) -> float: ...  # noqa: D102
