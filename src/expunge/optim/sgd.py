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
    """SGD of torch. Weight decay is added to the gradient; AdamW applies it separately.

    Args:
        groups: parameter groups, with and without weight decay.
        args: training arguments.
        momentum: decay of the velocity.
        dampening: share of the gradient that is left out of the velocity.
        nesterov: whether to use Nesterov's momentum.
    """
    return torch.optim.SGD(
        groups,
        lr=args.learning_rate,
        momentum=momentum,
        dampening=dampening,
        weight_decay=args.weight_decay,
        nesterov=nesterov,
    )
