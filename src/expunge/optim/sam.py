"""Sharpness-aware minimisation of the forget loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from expunge.core.ranges import NotNegative
from expunge.optim.perturbation import chosen, moved
from expunge.optim.rules import Step, StepRule, add_gradients, clear_gradients, trainable


class SAM(StepRule):
    """Evaluates the forget terms' gradient at the worst weights within a ball (to first order).

    Source: arXiv:2502.05374; SAM: arXiv:2010.01412.

    g is the gradient of the terms on `side` at theta, and delta = rho g / ||g||, over all trainable
    parameters. The step's gradient is that of these terms at theta + delta plus that of all other terms at
    theta. The weights are restored bit for bit before the optimizer's step; rho = 0 changes nothing. Cost:
    one more pass over the terms on `side`. If the step cannot keep their gradient separate (combined
    gradients, DeepSpeed, another such rule): one pass more over them and one over the other terms.

    Args:
        rho: radius of the ball, in the 2-norm over all trainable parameters.
        side: terms averaged over this side are sharpness-aware; None = all, which is the original SAM.
    """

    def __init__(self, *, rho: NotNegative = 0.01, side: str | None = "forget") -> None:
        self.rho, self.side = float(rho), side
        self.apart = side if self.rho else None
        self._norm = math.nan

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Replace the gradient by the gradient at the moved weights."""
        if self.rho == 0:
            return
        perturbed, others = chosen(self.side)
        parameters = trainable(model)
        kept = step.take_apart()
        if kept is None and perturbed is not None:
            clear_gradients(model)
            step.closure(perturbed)
        found = [parameter.grad for parameter in parameters] if kept is None else kept
        moving = [(parameter, g) for parameter, g in zip(parameters, found, strict=True) if g is not None]
        self._norm = _norm([gradient for _, gradient in moving])
        if self._norm > 0 and math.isfinite(self._norm):
            scale = self.rho / self._norm
            if kept is None:
                clear_gradients(model)
            with moved(
                [parameter for parameter, _ in moving],
                lambda index, parameter: (moving[index][1] * scale).to(parameter.dtype),
            ):
                step.closure(perturbed)
        elif kept is not None:
            # No direction, or an overflow of mixed precision: the scaler must see it and skip the step.
            add_gradients(parameters, kept)
        if kept is None and others is not None:
            step.closure(others)

    def metrics(self) -> dict[str, float]:
        """`sam_grad_norm`: norm of the sharpness-aware terms' gradient at the unmoved weights."""
        return {} if math.isnan(self._norm) else {"sam_grad_norm": self._norm}


def _norm(gradients: list[Tensor]) -> float:
    if not gradients:
        return 0.0
    with torch.no_grad():
        norm = get_total_norm([gradient.float() for gradient in gradients])
        # The norm of sharded gradients is a partial result; this sums it over the shards.
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
