"""Ranges of numbers in annotations: `rho: Annotated[float, AtLeast(0)] = 0.04`.

The binder reads them from the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Above:
    """The number is above `bound`."""

    bound: float


@dataclass(frozen=True)
class AtLeast:
    """The number is `bound` or more."""

    bound: float


@dataclass(frozen=True)
class Below:
    """The number is below `bound`."""

    bound: float


@dataclass(frozen=True)
class AtMost:
    """The number is `bound` or less."""

    bound: float


Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Share = Annotated[float, Above(0), AtMost(1)]
Decay = Annotated[float, AtLeast(0), Below(1)]
Count = Annotated[int, AtLeast(1)]
