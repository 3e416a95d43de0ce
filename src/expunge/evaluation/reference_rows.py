"""Compare the rows of the retain model's logs with this run's, before the model runs."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.data.examples import answers_of
from expunge.evaluation.plan import BoundMetric, Collection, Plan
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.views import View


def hold_against(logs: RetainLogs, plan: Plan, views: Mapping[str, View]) -> None:
    """Check the rows of every metric that is compared with the retain model's."""
    compared = set(_compared(plan))
    rows: set[tuple[str, ...]] = set()
    for metric in plan.metrics:
        tables = _tables(metric, views)
        if metric.name not in compared or not tables or not logs.has(metric.name):
            continue
        for need, view in tables.items():
            if len(tables) == 1 or need in logs.data[metric.name]:
                logs.check(metric.name, view.rows.ids, need if len(tables) > 1 else None)
                rows.add(view.rows.ids)
    for metric in plan.metrics:
        for view in _tables(metric, views).values():
            if view.rows.ids in rows and view.spec.text_key is None:
                logs.check_texts(metric.name, [answers_of(row, view.spec.answer_key)[0] for row in view.rows])


def _compared(plan: Plan) -> list[str]:
    """The metrics that metrics with retain logs read, directly or through other metrics."""
    by_name = {metric.name: metric for metric in plan.metrics}
    waiting = [metric for metric in plan.metrics if None in metric.needs.values()]
    found: list[str] = []
    while waiting:
        metric = waiting.pop()
        found += metric.metrics_needed()
        waiting += [by_name[name] for name in metric.metrics_needed()]
    return found


def _tables(metric: BoundMetric, views: Mapping[str, View]) -> dict[str, View]:
    """The views that a metric reads, by parameter name."""
    found = {name: need.view for name, need in metric.needs.items() if isinstance(need, Collection)}
    return {name: views[view] for name, view in found.items() if view in views}
