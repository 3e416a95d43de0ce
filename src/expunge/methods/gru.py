"""GRU, gradient rectified unlearning: a forget step without the part that conflicts with the retain set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.core.ranges import Share


class GRU:
    """Removes from the own gradient the part that points against the retain gradient.

    g_u is the gradient of the own terms. g_r is the running mean of the retain term's gradient g_t:
    g_r <- ema g_t + (1 - ema) g_r. Result: g = g_u - min(0, <g_u, g_r>) / ||g_r||^2 g_r, the gradient nearest
    to g_u with <g, g_r> >= 0. If the two do not conflict, g = g_u. The retain gradient is never added: it
    only limits the direction of the step.

    Source: arXiv:2503.09117; code: open-unlearning at 911e52a1cdd75e753e868b568257e5d2796af373,
    src/trainer/unlearn/gru.py, whose `gamma_gru` is `ema` here. Deviation: that code starts the running mean
    at 0, so the first g_r is too small by the factor ema. The projection is invariant to this factor, but
    later means are not. Here the mean starts at the first gradient. Cost: memory for two gradients.

    Args:
        ema: weight of the newest retain gradient in the running mean, above 0, at most 1; 1 = no memory.
    """

    def __init__(self, *, ema: Share = 0.8) -> None:
        self.ema = ema
        self.mean: list[Tensor] = []

    def __call__(self, own: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """The rectified gradient of a step, one tensor per parameter."""
        if not self.mean:
            self.mean = [part.detach().clone() for part in retain]
        else:
            self.mean = [
                torch.lerp(old.to(new), new, self.ema) for old, new in zip(self.mean, retain, strict=True)
            ]
        inner, square = _dot(own, self.mean), _dot(self.mean, self.mean)
        if not bool((inner < 0) & (square > 0)):
            return list(own)
        factor = inner / square
        return [part - factor.to(part) * mean for part, mean in zip(own, self.mean, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The running mean of the retain gradient."""
        return {f"retain_gradient.{number}": part for number, part in enumerate(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the running mean."""
        self.mean = [state[f"retain_gradient.{number}"] for number in range(len(state))]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two gradients, in float64."""
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum()
