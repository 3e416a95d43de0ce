"""Read the evaluation results of a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.files import read_json
from expunge.core.layout import RECORD_FILE, result_files


@dataclass(frozen=True)
class Measured:
    """One aggregate.

    Attributes:
        value: the value, or None.
        low: lower end of the bootstrap 95% interval; None if there is no interval for the value itself.
        high: upper end; likewise.
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
        name: name to show.
        metrics: aggregates by name, in the order of the suite.
        seconds: wall-clock time of the run, None if not recorded.
        steps: optimizer steps, None for an evaluation.
        peak_memory_mb: peak memory, None if not recorded.
    """

    name: str
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    seconds: float | None = None
    steps: int | None = None
    peak_memory_mb: float | None = None

    def value(self, metric: str) -> float | None:
        """The aggregate of a metric, or None."""
        found = self.metrics.get(metric)
        return found.value if found is not None else None


def read_evaluated(name: str, folder: Path, suite: str = "tofu") -> Evaluated:
    """Read the results of an evaluation run, or of the final evaluation of a training run.

    Args:
        name: name to show.
        folder: the run directory, of either layout, or a run directory of open-unlearning.
        suite: name of the suite.

    Returns:
        Its aggregates with intervals, and the recorded cost of the run.

    Raises:
        UserError: there are no results; the message lists the files searched.
    """
    files = list(result_files(folder, suite))
    found = next(((whole, summary) for whole, summary in files if (summary or whole).is_file()), None)
    if found is None:
        looked = ", ".join(str(summary or whole) for whole, summary in files)
        raise UserError(
            f"{folder} contains no results of the suite {suite}",
            f"looked for {looked}; run expunge eval first",
        )
    whole, summary = found
    details: dict[str, Any] = read_json(whole) if whole.is_file() else {}
    aggregates = read_json(summary) if summary is not None else _aggregates(details, whole)
    record = read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {}
    metrics = {metric: _measured(value, details.get(metric) or {}) for metric, value in aggregates.items()}
    return Evaluated(name, metrics, record.get("seconds"), record.get("steps"), record.get("peak_memory_mb"))


def _aggregates(details: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The aggregates in the file of a whole evaluation."""
    try:
        return {metric: details[metric]["agg_value"] for metric in details["_about"]["summary"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not an evaluation file of this tool: it lacks {error}",
            "give a run folder of this tool, or evaluate again",
        ) from error


def _measured(value: float | None, detail: Mapping[str, Any]) -> Measured:
    interval = detail.get("interval") or {}
    of_value = interval.get("of", "value") == "value"
    return Measured(
        value,
        interval.get("low") if of_value else None,
        interval.get("high") if of_value else None,
        str(detail.get("reason", "")),
    )
