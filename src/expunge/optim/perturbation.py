"""Gradients at weights that are moved for a moment and then put back to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved(
    parameters: Sequence[nn.Parameter], offset: Callable[[int, nn.Parameter], Tensor]
) -> Iterator[None]:
    """While open, each parameter has `offset(index, parameter)` added; afterwards it holds the very bits it held before.

    The weights are copied, since adding and subtracting an offset does not give them back in floating point.
    """
    with torch.no_grad():
        kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.add_(offset(index, parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def chosen(side: str | None) -> tuple[Callable[[str], bool] | None, Callable[[str], bool] | None]:
    """Which terms are computed at moved weights, and which at the weights as they are; None = all, or none of them."""
    if side is None:
        return None, None
    return (lambda name: name == side), (lambda name: name != side)
