"""The result of a metric: an aggregate, a value for each row, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expunge.evaluation.statistics import Interval, Mean, Statistic, interval

Column = Any
"""[R] or [R, A] array with NaN for unscored values, or R texts."""


@dataclass(frozen=True)
class Result:
    """A metric's outcome.

    Attributes:
        statistic: computes the aggregate on the rows and on resampled rows; None = there is no result.
        columns: one value per row, by the field's names: `prob`, `avg_loss`, `score`.
        row_ids: ids of the rows of `columns`.
        parts: results inside this one: `forget` and `holdout` of an attack.
        facts: further numbers, written beside the aggregate.
        reported: the aggregate, if it is not the value of the statistic (a p-value, whose interval is of D).
        interval_of: the quantity of the interval.
        reason: why there is no result.
        name: of the metric, set by the suite.
        interval: bootstrap interval, set by the suite.
    """

    statistic: Statistic | None
    columns: Mapping[str, Column] = field(default_factory=dict)
    row_ids: Sequence[str] = ()
    parts: Mapping[str, Result] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    reported: float | None = None
    interval_of: str = "value"
    reason: str | None = None
    name: str = ""
    interval: Interval | None = None

    @classmethod
    def missing(cls, reason: str) -> Result:
        """No result, with the reason."""
        return cls(None, reason=reason)

    @property
    def value(self) -> float | None:
        """The aggregate; None if there is none."""
        if self.statistic is None:
            return None
        return self.reported if self.reported is not None else self.statistic.value()

    @property
    def why_missing(self) -> str | None:
        """The reason why there is no value; None if there is a value."""
        return (self.reason or "no row is scored") if self.value is None else None

    def bootstrapped(self, resamples: int, seed: int) -> Interval | None:
        """The interval of the statistic."""
        if self.statistic is None:
            return None
        return interval(self.statistic, self.name, resamples, seed, self.interval_of)

    def as_json(self) -> dict[str, Any]:
        """As written to files: open-unlearning's `agg_value` and `value_by_index`, and our own keys."""
        found: dict[str, Any] = {"agg_value": self.value}
        if self.columns:
            found["value_by_index"] = self.by_index()
        found.update({name: part.as_json() for name, part in self.parts.items()})
        found.update(self.facts)
        if self.statistic is not None:
            found["n_scored"], found["n_unscored"] = self.statistic.scored()
        if self.interval is not None:
            found["interval"] = self.interval._asdict()
        if self.value is None:
            found["reason"] = self.why_missing
        return found

    def by_index(self) -> dict[str, dict[str, Any]]:
        """Row position (as text) -> its values; None = unscored."""
        names = list(self.columns)
        listed = [_listed(self.columns[name]) for name in names]
        return {
            str(index): dict(zip(names, values, strict=True))
            for index, values in enumerate(zip(*listed, strict=True))
        }


def of_means(parts: Sequence[Result], make: Callable[[list[Mean]], Statistic]) -> Result:
    """A statistic of results that are means over rows; null if one of them is not."""
    means = [part.statistic for part in parts if isinstance(part.statistic, Mean)]
    if len(means) < len(parts):
        odd = ", ".join(part.name for part in parts if not isinstance(part.statistic, Mean))
        return Result.missing(f"not a mean over rows: {odd}")
    return Result(make(means), facts={"parts": {part.name: part.value for part in parts}})


def _listed(column: Column) -> list[Any]:
    """A column as plain values: NaN becomes None, and a list of answers ends with the row's last answer."""
    if not isinstance(column, np.ndarray):
        return list(column)
    if column.ndim == 1:
        return [None if value != value else value for value in column.tolist()]
    rows = []
    for values in column.tolist():
        while values and values[-1] != values[-1]:
            values.pop()
        rows.append([None if value != value else value for value in values])
    return rows
