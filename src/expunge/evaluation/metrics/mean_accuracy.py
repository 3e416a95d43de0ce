"""Average over tasks."""

from __future__ import annotations

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Average, Mean


def mean_accuracy(parts: tuple[Result, ...]) -> Result:
    """Mean of the tasks' accuracies, each with the same weight. Range 0 to 1, higher is better.

    Null if a task is null.

    Args:
        parts: results that are means over rows.
    """
    means = [part.statistic for part in parts if isinstance(part.statistic, Mean)]
    if len(means) < len(parts):
        odd = ", ".join(part.name for part in parts if not isinstance(part.statistic, Mean))
        return Result.missing(f"not a mean over rows: {odd}")
    return Result(Average(means), facts={"parts": {part.name: part.value for part in parts}})
