"""Sharpness-aware minimisation of the forget loss."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from expunge.core.ranges import NotNegative
from expunge.optim.perturbation import chosen, moved
from expunge.optim.rules import Step, StepRule, clear_gradients, trainable


class SAM(StepRule):
    """Takes the forget terms' gradient where they are worst within a ball about the weights (arXiv:2502.05374; SAM: arXiv:2010.01412).

    With g the gradient of the terms on `side` at theta and delta = rho g / ||g|| over all trainable
    parameters, the step's gradient is that of these terms at theta + delta plus that of all other terms at
    theta. Weights are back to the bit before the optimizer moves them; rho = 0 changes nothing. Cost: two
    more passes over the terms on `side`, and one more over the others; with `side=None` one more over all.

    Args:
        rho: radius of the ball, in the 2-norm over all trainable parameters.
        side: terms averaged over this side are sharpness-aware; None = all, which is SAM as first published.
    """

    def __init__(self, *, rho: NotNegative = 0.01, side: str | None = "forget") -> None:
        self.rho, self.side = float(rho), side
        self._norm = math.nan

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Put the gradient at the moved weights in place of the gradient as it is."""
        if self.rho == 0:
            return
        perturbed, others = chosen(self.side)
        if perturbed is not None:
            clear_gradients(model)
            step.closure(perturbed)
        parameters = [parameter for parameter in trainable(model) if parameter.grad is not None]
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        self._norm = _norm(gradients)
        if self._norm > 0 and math.isfinite(self._norm):
            scale = self.rho / self._norm
            clear_gradients(model)
            with moved(parameters, lambda index, parameter: (gradients[index] * scale).to(parameter.dtype)):
                step.closure(perturbed)
        # Else there is no direction, or mixed precision has overflowed: the scaler has to see that and skip
        # the step.
        if others is not None:
            step.closure(others)

    def metrics(self) -> dict[str, float]:
        """`sam_grad_norm` = norm of the gradient at the weights as they are, of the terms that are sharpness-aware."""
        return {} if math.isnan(self._norm) else {"sam_grad_norm": self._norm}


def _norm(gradients: list[Tensor]) -> float:
    if not gradients:
        return 0.0
    with torch.no_grad():
        norm = get_total_norm([gradient.float() for gradient in gradients])
        # A sharded norm is a sum over the shards that has yet to be taken.
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
