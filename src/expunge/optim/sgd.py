"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from expunge.core.ranges import NotNegative
from expunge.optim.arguments import OptimizerArgs


def sgd(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    momentum: NotNegative = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """SGD as torch has it. Its weight decay is added to the gradient, not apart from it as AdamW's.

    Args:
        groups: parameter groups, with and without weight decay.
        args: of the training.
        momentum: decay of the velocity.
        dampening: share of the gradient that is left out of the velocity.
        nesterov: look ahead along the velocity.
    """
    return torch.optim.SGD(
        groups,
        lr=args.learning_rate,
        momentum=momentum,
        dampening=dampening,
        weight_decay=args.weight_decay,
        nesterov=nesterov,
    )
