"""Compute the metrics of a suite from the collected tables, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from expunge.evaluation.plan import BoundMetric, Collection
from expunge.evaluation.results import Result
from expunge.evaluation.suite import Suite
from expunge.evaluation.tables import Table


def results_of(
    suite: Suite, tables: Mapping[Collection, Table], absent: Mapping[Collection, str]
) -> dict[str, Result]:
    """Every metric of a suite, with its interval; `absent` says why a table could not be collected."""
    reasons = {**_without_a_view(suite), **absent}
    results: dict[str, Result] = {}
    for metric in suite.plan.metrics:
        result = replace(_compute(metric, tables, reasons, results, suite), name=metric.name)
        results[metric.name] = replace(result, interval=result.bootstrapped(*suite.bootstrap))
    return results


def _without_a_view(suite: Suite) -> dict[Collection, str]:
    """For each table without a view, the reason why the view is missing."""
    plan, views = suite.plan, suite.views
    return {
        item: views.missing.get(item.view) or f"there is no view {item.view}: {plan.views[item.view].absent}"
        for item in plan.collections
        if item.view not in views
    }


def _compute(
    metric: BoundMetric,
    tables: Mapping[Collection, Table],
    reasons: Mapping[Collection, str],
    results: Mapping[str, Result],
    suite: Suite,
) -> Result:
    """Compute a metric; it is null with the reason if something that it reads is missing."""
    for need in metric.needs.values():
        if isinstance(need, Collection) and need not in tables:
            return Result.missing(reasons[need])
    for name in metric.metrics_needed():
        if results[name].statistic is None:
            return Result.missing(f"{name} is null: {results[name].reason}")
    arguments: dict[str, Any] = {}
    for name, need in metric.needs.items():
        if isinstance(need, Collection):
            arguments[name] = tables[need]
        elif isinstance(need, tuple):
            arguments[name] = tuple(results[item] for item in need)
        else:
            arguments[name] = suite.logs if need is None else results[need]
    return metric.function(**arguments, **metric.options)


def row_ids(results: Mapping[str, Result]) -> dict[str, list[str]]:
    """Row ids of every metric with a value per row, for comparisons with other runs."""
    found = {name: list(result.row_ids) for name, result in results.items() if result.columns}
    for name, result in results.items():
        found |= {f"{name}.{side}": list(part.row_ids) for side, part in result.parts.items() if part.columns}
    return found
