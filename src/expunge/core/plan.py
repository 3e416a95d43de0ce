"""What a training would need on several numbers of ranks: the result of `expunge plan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from expunge.core.footprint import Parts
from expunge.core.step_cost import Speed


@dataclass(frozen=True)
class Line:
    """A training on some ranks.

    Attributes:
        ranks: W.
        parts: bytes of one rank at its peak.
        tracked: whether the tracker found them, not the formulas.
        seconds: of an optimizer step.
        sent: bytes that a rank sends in a step.
        rows_a_step: rows of an optimizer step, on all ranks.
        steps: of the run; None = not known.
        change: the first change that makes it fit; None = it fits, or nothing does.
        changed: bytes of one rank at its peak after the change, by formulas.
    """

    ranks: int
    parts: Parts
    tracked: bool
    seconds: float
    sent: float
    rows_a_step: int
    steps: int | None
    change: str | None = None
    changed: float | None = None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of one GPU for all steps; None where the steps are not known."""
        return None if self.steps is None else self.ranks * self.seconds * self.steps / 3600


@dataclass(frozen=True)
class Plan:
    """A training on several numbers of ranks.

    Attributes:
        model: what it is called.
        parameters: all weights.
        trained: those that are trained.
        reference: how the model before unlearning is read.
        engine: how weights are placed on several ranks.
        limit: bytes of one GPU.
        limit_source: "given", "measured" or "assumed".
        lengths_source: by side: tokens of the longest row, labels of a row, "measured" or "assumed".
        speed: of the machines.
        lines: one for each number of ranks.
        notices: what could not be found out, and what was done instead.
    """

    model: str
    parameters: int
    trained: int
    reference: str
    engine: str
    limit: float
    limit_source: str
    lengths_source: dict[str, str]
    speed: Speed
    lines: tuple[Line, ...]
    notices: tuple[str, ...] = field(default=())
