"""Average over tasks."""

from __future__ import annotations

from expunge.evaluation.results import Result, of_means
from expunge.evaluation.statistics import Average


def mean_accuracy(parts: tuple[Result, ...]) -> Result:
    """Mean of the tasks' accuracies, each with the same weight. Range 0 to 1, higher is better.

    Null if a task is null.
    """
    return of_means(parts, Average)
