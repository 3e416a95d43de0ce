"""Schedules: what the weights of a method's own terms and of the retain term are multiplied by as training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class StepInfo:
    """Where training stands at the beginning of an optimizer step.

    Attributes:
        step: optimizer steps done.
        num_steps: optimizer steps in all.
        epoch: epochs done, a fraction.
        num_epochs: epochs in all.
    """

    step: int
    num_steps: int
    epoch: float
    num_epochs: float

    @property
    def whole_epochs(self) -> int:
        """Epochs that are over; a sum of fractions that is short of a whole one by rounding counts as it."""
        return math.floor(self.epoch + 1e-6)


class Factors(NamedTuple):
    """What the weights are multiplied by.

    Attributes:
        own: for the method's own terms.
        retain: for the retain term.
    """

    own: float
    retain: float


Schedule = Callable[[StepInfo], Factors]


def constant(info: StepInfo) -> Factors:
    """The weights as they are."""
    return Factors(1.0, 1.0)


def ramp(info: StepInfo) -> Factors:
    """The retain weight grows by whole epochs: epoch / num_epochs, the epoch counted from 0, so that the first one has no retain term.

    Source: the `_epoch` methods of SOUL (arXiv:2404.18239).
    """
    return Factors(1.0, info.whole_epochs / info.num_epochs)


def switch(info: StepInfo, *, at: float = 0.5) -> Factors:
    """The method's own terms alone before the share `at` of the epochs, the retain term alone from then on."""
    return Factors(0.0, 1.0) if info.epoch >= at * info.num_epochs - 1e-6 else Factors(1.0, 0.0)


def reroute(info: StepInfo, *, span: float = 2.0) -> Factors:
    """From the own terms to the retain term in a straight line: 1 - t and t, with t = step / (span * num_steps), the step counted from 1.

    Source: algorithm 1 of arXiv:2406.04313, whose span is 2: in the last step both weigh half. Deviation from
    the authors' code: that counts micro-batches and divides by 300 whatever the run's length, which is the
    same for its 150 steps without accumulation.
    """
    done = min(1.0, (info.step + 1) / (span * max(1, info.num_steps)))
    return Factors(1.0 - done, done)


def fade(info: StepInfo, *, until: float = 1.0) -> Factors:
    """The own terms fade by whole epochs, 1 - epoch / (until * num_epochs), to 0 at the share `until` of the epochs; the retain term stays.

    Source: the decay of l1-sparse's penalty in the authors' code (arXiv:2304.04934), whose `no_l1_epochs` of
    E epochs is until = 1 -
    no_l1_epochs / E:
    https://github.com/OPTML-Group/Unlearn-Sparse/blob/16a2dbc8d88f222e238556baca717cebb6269dc2/unlearn/FT.py.
    """
    span = until * info.num_epochs
    return Factors(max(0.0, 1.0 - info.whole_epochs / span) if span > 0 else 0.0, 1.0)
