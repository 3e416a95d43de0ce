"""Schedules: factors of the weights of a method's own terms and of the retain term during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class StepInfo:
    """The progress of training at the beginning of an optimizer step.

    Attributes:
        step: optimizer steps done.
        num_steps: optimizer steps in total.
        epoch: epochs done, with a fractional part.
        num_epochs: epochs in total.
    """

    step: int
    num_steps: int
    epoch: float
    num_epochs: float

    @property
    def whole_epochs(self) -> int:
        """Finished epochs. A value just below an integer because of rounding counts as that integer."""
        return math.floor(self.epoch + 1e-6)


class Factors(NamedTuple):
    """Factors of the weights of the method's own terms and of the retain term."""

    own: float
    retain: float


Schedule = Callable[[StepInfo], Factors]


def constant(info: StepInfo) -> Factors:
    """Constant weights."""
    return Factors(1.0, 1.0)


def ramp(info: StepInfo) -> Factors:
    """The retain weight grows by whole epochs: epoch / num_epochs.

    The epoch is counted from 0, so the first epoch has no retain term.

    Source: the `_epoch` methods of SOUL (arXiv:2404.18239).
    """
    return Factors(1.0, info.whole_epochs / info.num_epochs)


def switch(info: StepInfo, *, at: float = 0.5) -> Factors:
    """Only the method's own terms before the share `at` of the epochs, only the retain term afterwards."""
    return Factors(0.0, 1.0) if info.epoch >= at * info.num_epochs - 1e-6 else Factors(1.0, 0.0)


def reroute(info: StepInfo, *, span: float = 2.0) -> Factors:
    """Linear shift from the own terms to the retain term: factors 1 - t and t, t = step / (span * num_steps).

    The step is counted from 1, and t is at most 1.

    Source: algorithm 1 of arXiv:2406.04313, whose span is 2: in the last step both factors are 1/2. Deviation
    from the authors' code: it counts micro-batches and divides by 300 for any length of the run. For its 150
    steps without accumulation the result is the same.
    """
    done = min(1.0, (info.step + 1) / (span * max(1, info.num_steps)))
    return Factors(1.0 - done, done)


def fade(info: StepInfo, *, until: float = 1.0) -> Factors:
    """The own terms fade by whole epochs: 1 - epoch / (until * num_epochs); the retain term is constant.

    The own terms reach 0 at the share `until` of the epochs.

    Source: the decay of l1-sparse's penalty in the authors' code (arXiv:2304.04934). Its `no_l1_epochs` of E
    epochs corresponds to until = 1 - no_l1_epochs / E:
    https://github.com/OPTML-Group/Unlearn-Sparse/blob/16a2dbc8d88f222e238556baca717cebb6269dc2/unlearn/FT.py.
    """
    span = until * info.num_epochs
    return Factors(max(0.0, 1.0 - info.whole_epochs / span) if span > 0 else 0.0, 1.0)
