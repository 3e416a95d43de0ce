"""The result of `expunge plan`: what a training needs on several numbers of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.core.footprint import Parts
from expunge.core.job import Job
from expunge.core.step_cost import Cost, Figure, Speed


@dataclass(frozen=True)
class Line:
    """A training on a number of ranks.

    Attributes:
        ranks: W.
        parts: bytes of one rank at its peak.
        tracked: whether `parts` comes from the tracker, not from the formulas.
        cost: cost of an optimizer step.
        steps: optimizer steps of the run; None = unknown.
        change: the first change that makes it fit, and the bytes of one rank at its peak then, by formulas;
            None = it fits already, or no change is enough.
        joint: if weights are sharded and there are several groups of terms: bytes at the peak and seconds of
            a step if all are back-propagated together, by formulas.
    """

    ranks: int
    parts: Parts
    tracked: bool
    cost: Cost
    steps: int | None
    change: tuple[str, float] | None
    joint: tuple[float, float] | None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of one GPU for all steps; None if the number of steps is unknown."""
        return None if self.steps is None else self.ranks * self.cost.seconds * self.steps / 3600


@dataclass(frozen=True)
class Forecast:
    """A training on several numbers of ranks.

    Attributes:
        model: name of the model.
        job: the training.
        limit: bytes of one GPU.
        lengths: by side: tokens of the longest row, labels of a row, and where they come from.
        speed: speed of the machines.
        lines: one for each number of ranks.
        notices: what is unknown, and what was assumed instead.
    """

    model: str
    job: Job
    limit: Figure
    lengths: dict[str, str]
    speed: Speed
    lines: tuple[Line, ...]
    notices: tuple[str, ...]
