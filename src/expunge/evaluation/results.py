"""What a metric gives: an aggregate, a value for each row, and why there is none where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expunge.evaluation.statistics import Interval, Statistic, interval

Column = Any
"""[R] or [R, A] array with NaN for what is unscored, or R texts."""


@dataclass(frozen=True)
class Result:
    """A metric's outcome.

    Attributes:
        statistic: the aggregate, to be computed as it is and on resampled rows; None where there is no
            result.
        columns: values a row by name, as the field names them: `prob`, `avg_loss`, `score`.
        row_ids: ids of the rows that `columns` are about.
        parts: results inside this one: `forget` and `holdout` of an attack.
        facts: further figures, written beside the aggregate.
        reported: the aggregate where it is not the statistic's value (a p-value, whose interval is on D).
        interval_of: what the interval is of.
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
        """The aggregate, None where there is none."""
        if self.statistic is None:
            return None
        return self.reported if self.reported is not None else self.statistic.value()

    @property
    def why_missing(self) -> str | None:
        """The reason why there is no value, None where there is one."""
        return (self.reason or "no row is scored") if self.value is None else None

    def bootstrapped(self, resamples: int, seed: int) -> Interval | None:
        """The interval of the statistic."""
        return (
            interval(self.statistic, self.name, resamples, seed, self.interval_of)
            if self.statistic is not None
            else None
        )

    def as_json(self) -> dict[str, Any]:
        """As it is written: open-unlearning's `agg_value` and `value_by_index`, and what is ours beside them."""
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
        """Row position (as text) to its values; None where unscored."""
        names = list(self.columns)
        listed = [_listed(self.columns[name]) for name in names]
        return {
            str(index): dict(zip(names, values, strict=True))
            for index, values in enumerate(zip(*listed, strict=True))
        }


def _listed(column: Column) -> list[Any]:
    """A column as plain values: NaN is None, and a list of answers ends where the row's answers do."""
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
