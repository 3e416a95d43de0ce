"""What a run directory says of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.files import read_json


@dataclass(frozen=True)
class Measured:
    """One aggregate.

    Attributes:
        value: None where there is none.
        low: lower end of its bootstrap 95% interval, None where there is none or it is not of the value itself.
        high: upper end.
        reason: why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Evaluated:
    """A run and its scores.

    Attributes:
        name: as the reader will call it.
        metrics: aggregates by name, in the suite's order.
        seconds: wall-clock of the run, None where it is not recorded.
        steps: optimizer steps, None for an evaluation.
        peak_memory_mb: highest memory, None where it is not recorded.
    """

    name: str
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    seconds: float | None = None
    steps: int | None = None
    peak_memory_mb: float | None = None

    def value(self, metric: str) -> float | None:
        """The aggregate of a metric; None where there is none."""
        found = self.metrics.get(metric)
        return found.value if found is not None else None


def read_evaluated(name: str, folder: Path, suite: str = "tofu") -> Evaluated:
    """Read the results of an evaluation run, or of the final evaluation of a training run.

    Args:
        name: what to call it.
        folder: the run directory; one that open-unlearning wrote serves as well.
        suite: name of the suite.

    Returns:
        Its aggregates with intervals, and what the run cost where that is recorded.

    Raises:
        UserError: no results there, with where they were looked for.
    """
    summary = f"{suite.upper()}_SUMMARY.json"
    home = next((place for place in (folder, folder / "evals") if (place / summary).is_file()), None)
    if home is None:
        raise UserError(f"{folder} holds no {summary}", f"looked in {folder} and {folder / 'evals'}; run expunge eval first")
    details: dict[str, Any] = {}
    if (home / f"{suite.upper()}_EVAL.json").is_file():
        details = read_json(home / f"{suite.upper()}_EVAL.json")
    record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    metrics = {metric: _measured(value, details.get(metric) or {}) for metric, value in read_json(home / summary).items()}
    return Evaluated(name, metrics, record.get("seconds"), record.get("steps"), record.get("peak_memory_mb"))


def _measured(value: float | None, detail: Mapping[str, Any]) -> Measured:
    interval = detail.get("interval") or {}
    of_value = interval.get("of", "value") == "value"
    return Measured(
        value, interval.get("low") if of_value else None, interval.get("high") if of_value else None, str(detail.get("reason", ""))
    )
