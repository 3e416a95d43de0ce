"""GRU, gradient rectified unlearning: a step of forgetting that does not go against the retain set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.core.ranges import Share


class GRU:
    """Takes off the own gradient what points against the retain gradient.

    With g_u the gradient of the own terms and g_r the running mean of the retain term's, g_r <- ema g + (1 -
    ema) g_r: g = g_u - min(0, <g_u, g_r>) / ||g_r||^2 g_r, the gradient nearest to g_u with <g, g_r> >= 0.
    Where the two agree, g_u is taken as it
    is. The retain gradient is never added: the retain set is kept by not going against it.

    Source: arXiv:2503.09117; in code open-unlearning at 911e52a1cdd75e753e868b568257e5d2796af373,
    src/trainer/unlearn/gru.py, whose
    `gamma_gru` is `ema` here. Deviation: that starts the running mean at 0, so that the first g_r is ema
    times too short, which the projection does not see, but the later ones mix it in as it is; here it starts
    at the first gradient. Costs two gradients of memory.

    Args:
        ema: weight of the newest retain gradient in the running mean, above 0, at most 1; 1 = no memory.
    """

    def __init__(self, *, ema: Share = 0.8) -> None:
        self.ema = ema
        self.mean: list[Tensor] = []

    def __call__(self, own: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """The rectified gradient of a step, a tensor a parameter."""
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
        """Take up the running mean."""
        self.mean = [state[f"retain_gradient.{number}"] for number in range(len(state))]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The inner product of two gradients, in float64."""
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)]).sum()
