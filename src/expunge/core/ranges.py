"""Ranges of numbers in annotations: `rho: Annotated[float, AtLeast(0)] = 0.04`.

The binder reads them from the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """A limit of a number."""

    bound: float


class Above(Range):
    """The number is above `bound`."""


class AtLeast(Range):
    """The number is `bound` or more."""


class Below(Range):
    """The number is below `bound`."""


class AtMost(Range):
    """The number is `bound` or less."""


Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Share = Annotated[float, Above(0), AtMost(1)]
Decay = Annotated[float, AtLeast(0), Below(1)]
Count = Annotated[int, AtLeast(1)]
