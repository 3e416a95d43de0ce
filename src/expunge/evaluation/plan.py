"""The plan of a suite: its metrics in order, and the tables that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.config.evaluation import RETAIN_LOGS, bind_suite, metrics_of, reads
from expunge.core.binding import Bound, Switches, bound_alone
from expunge.evaluation.collect.collector import Collector, settings_of
from expunge.evaluation.results import Result
from expunge.evaluation.view_specs import ViewSpec, spec_of


@dataclass(frozen=True)
class Collection:
    """One table to collect: the kind of its collector, a view, and settings as sorted pairs."""

    kind: str
    view: str
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class BoundMetric:
    """A metric with its options.

    `needs` has for each positional parameter what it reads: a table, the name of a metric, a tuple of names,
    or the retain logs (None).
    """

    name: str
    function: Callable[..., Result]
    needs: Mapping[str, Collection | str | tuple[str, ...] | None]
    options: Mapping[str, Any]
    in_summary: bool

    def metrics_needed(self) -> Iterator[str]:
        """Names of the metrics it reads."""
        for need in self.needs.values():
            if isinstance(need, str):
                yield need
            elif isinstance(need, tuple):
                yield from need


@dataclass(frozen=True)
class Plan:
    """What a suite computes: its metrics, each after those that it reads; the needed tables, each once."""

    metrics: tuple[BoundMetric, ...]
    collections: tuple[Collection, ...]
    views: Mapping[str, ViewSpec]
    collectors: Mapping[str, Collector]

    def view_names(self) -> list[str]:
        """The views of the needed tables."""
        return list(dict.fromkeys(item.view for item in self.collections))


def make_plan(
    suite: Mapping[str, Any],
    switches: Switches = lambda _: {},
    *,
    key: str = "eval.suite",
    bound: Mapping[str, Bound] | None = None,
) -> Plan:
    """Make the plan of a suite from what was bound.

    Args:
        suite: the suite's section: `views`, `metrics`, `collectors`, and the collectors' settings.
        switches: options that `compat` sets for a metric function; used only without `bound`.
        key: of the suite in the configuration.
        bound: what validation bound (`Config.bound`); None = the section is bound now.

    Raises:
        UserError: every fault of the section, together; or a module that cannot be imported.
    """
    if bound is None:
        bound = bound_alone(bind_suite, key, suite, switches)
    of_kinds = f"{key}.collectors."
    collectors = [item.load()() for name, item in bound.items() if name.startswith(of_kinds)]
    tables = {f"{item.table.__module__}:{item.table.__qualname__}": item for item in collectors}
    waiting = {
        name: _metric(name, bound[f"{key}.metrics.{name}"], suite, tables) for name in metrics_of(suite)
    }
    ordered: dict[str, BoundMetric] = {}
    # Binding has reported circles, so in each round some metric is ready.
    while waiting:
        for name in [name for name in waiting if ordered.keys() >= {*waiting[name].metrics_needed()}]:
            ordered[name] = waiting.pop(name)
    needs = [need for metric in ordered.values() for need in metric.needs.values()]
    collections = dict.fromkeys(need for need in needs if isinstance(need, Collection))
    views = {name: spec_of(bound[f"{key}.views.{name}"]) for name in suite.get("views") or {}}
    by_kind = {item.kind: item for item in collectors}
    return Plan(tuple(ordered.values()), tuple(collections), views, by_kind)


def _metric(
    name: str, bound: Bound, suite: Mapping[str, Any], collectors: Mapping[str, Collector]
) -> BoundMetric:
    """A metric with its needs; `collectors` by the `module:Class` of their tables."""
    function, positional = bound.load(), bound.signature.positional
    options = {key: value for key, value in bound.kwargs.items() if key not in positional}
    values = {**(function.__kwdefaults__ or {}), **options}
    needs: dict[str, Collection | str | tuple[str, ...] | None] = {}
    for need in positional:
        what, given = reads(bound.signature, need), bound.kwargs.get(need)
        if what == RETAIN_LOGS:
            needs[need] = None
        elif what in collectors and given is not None:
            settings = settings_of(collectors[what], suite, bound.options, values)
            pairs = sorted((key, _frozen(value)) for key, value in settings.items())
            needs[need] = Collection(collectors[what].kind, given, tuple(pairs))
        elif given is not None:
            needs[need] = given if isinstance(given, str) else tuple(given)
    return BoundMetric(name, function, needs, options, bound.options["summary"])


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
