"""The exact top share of many scores, without sorting them and without storing them in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expunge.core.errors import UserError

CHUNK = 1 << 22
"""Number of scores counted at once."""
HALF = 1 << 16


def top_share(score: Callable[[str], Tensor], names: Sequence[str], ratio: float) -> dict[str, Tensor]:
    """Choose the `round(ratio * total)` highest scores over all parameters.

    Non-negative float32 numbers have the same order as their bits. A histogram of the upper 16 bits finds the
    bin of the threshold; a second histogram, of the lower 16 bits in that bin, finds the threshold. Scores
    equal to the threshold are taken in the order of `names` and of their positions until the number is
    reached, so the choice is the same on every machine.

    Args:
        score: gives the scores of a parameter by name, any shape, not negative. Called three times per name,
            so that not all scores are in memory at once.
        names: the parameters.
        ratio: the share, above 0 and at most 1.

    Returns:
        By name, a bool tensor of the scores' shape, on their device, True = chosen.

    Raises:
        UserError: a score that is not finite, or a ratio that chooses nothing.
    """
    if not 0 < ratio <= 1:
        raise UserError(
            f"the ratio of the mask is {ratio!r}, outside its range",
            "give the share of weights that may be updated: above 0, at most 1",
        )
    upper, total = torch.zeros(HALF, dtype=torch.long), 0
    for name in names:
        for bits in _bits(score(name), name):
            upper += torch.bincount(bits >> 16, minlength=HALF).cpu()
            total += len(bits)
    wanted = round(ratio * total)
    if wanted == 0:
        raise UserError(f"the mask's ratio {ratio} of {total} weights selects none", "give a larger ratio")
    bin_, above = _crossing(upper, wanted)
    lower = torch.zeros(HALF, dtype=torch.long)
    for name in names:
        for bits in _bits(score(name), name):
            lower += torch.bincount(bits[(bits >> 16) == bin_] & (HALF - 1), minlength=HALF).cpu()
    low, within = _crossing(lower, wanted - above)
    threshold, ties = (bin_ << 16) + low, wanted - above - within
    chosen: dict[str, Tensor] = {}
    for name in names:
        values = score(name)
        parts = []
        for bits in _bits(values, name):
            tied = bits == threshold
            first = tied & (tied.cumsum(0) <= ties)
            ties -= int(first.sum())
            parts.append((bits > threshold) | first)
        chosen[name] = (
            torch.cat(parts).reshape(values.shape) if parts else torch.zeros_like(values, dtype=torch.bool)
        )
    return chosen


def _crossing(count: Tensor, wanted: int) -> tuple[int, int]:
    """The highest bin such that it and the bins above hold at least `wanted`; and the count above it."""
    from_top = count.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, wanted))
    return len(count) - 1 - place, int(from_top[place - 1]) if place else 0


def _bits(values: Tensor, name: str) -> list[Tensor]:
    """The scores as integers of the same order, in flat chunks."""
    flat = values.detach().to(torch.float32).reshape(-1)
    if not bool(torch.isfinite(flat).all()):
        raise UserError(
            f"a score of {name} is not finite",
            "the gradient overflowed or the weights are damaged; compute the scores in float32",
        )
    assert bool((flat >= 0).all()), f"a score of {name} is negative"
    # Adding 0.0 turns -0.0, whose bits are the smallest integer, into 0.0.
    return [part.view(torch.int32).long() for part in torch.split(flat + 0.0, CHUNK)] if len(flat) else []
