"""Relative difference of an aggregate from the retain model's."""

from __future__ import annotations

from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.statistics import Mapped


def rel_diff(score: Result, retain_logs: RetainLogs | None) -> Result:
    """100 (s - ref) / ref in per cent, with s this model's aggregate and ref the retain model's. Best is 0.

    Null without retain logs, and if the retain model's value is 0.
    """
    if retain_logs is None:
        return Result.missing("no retain_logs_path")
    reference = retain_logs.aggregate(score.name)
    if reference is None or score.statistic is None:
        return Result.missing(f"{retain_logs.path} has no value of {score.name}")
    if reference == 0:
        return Result.missing(f"the retain model's {score.name} is 0: there is nothing to divide by")
    return Result(
        Mapped(score.statistic, lambda value: 100 * (value - reference) / reference),
        facts={"reference": reference},
    )
