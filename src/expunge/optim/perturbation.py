"""Temporarily moved weights, restored bit for bit afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved(
    parameters: Sequence[nn.Parameter], offset: Callable[[int, nn.Parameter], Tensor]
) -> Iterator[None]:
    """Add `offset(index, parameter)` to each parameter inside the context; restore it bit for bit afterwards.

    The weights are copied, because adding and then subtracting an offset is not exact in floating point.
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
    """Two filters by side: terms at moved weights (None = all), terms at unmoved weights (None = none)."""
    if side is None:
        return None, None
    return (lambda name: name == side), (lambda name: name != side)
