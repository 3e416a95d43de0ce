"""From a suite's configuration to what has to be collected: bound metrics in order, and the union of their needs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.core.errors import Fault, UserError, unknown
from expunge.evaluation.collect.collector import Collector, settings_of
from expunge.evaluation.collectors import collectors_of
from expunge.evaluation.handlers import load_named
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.tables import Table
from expunge.evaluation.view_specs import ViewSpec, parse_views

Switches = Callable[[str], Mapping[str, Any]]
RESERVED = ("handler", "summary", "enabled")
"""Keys of a metric's entry that are neither needs nor options nor a collector's section."""


@dataclass(frozen=True)
class Collection:
    """One table: what to collect on which view with which settings.

    Attributes:
        kind: of the collector.
        view: name of the view.
        settings: of the collector, as sorted pairs.
    """

    kind: str
    view: str
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class BoundMetric:
    """A metric with its needs bound to names and its options settled.

    Attributes:
        name: in the suite and in the files.
        function: the metric.
        needs: positional parameter -> what it reads: a table, a metric's name, a tuple of them, or the retain
            logs (None).
        options: keyword arguments.
        in_summary: whether the summary lists it.
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
    """What a suite computes.

    Attributes:
        metrics: each after those that it reads.
        collections: the tables needed, each once.
        views: of the suite.
        collectors: by kind.
    """

    metrics: tuple[BoundMetric, ...]
    collections: tuple[Collection, ...]
    views: Mapping[str, ViewSpec]
    collectors: Mapping[str, Collector]

    def view_names(self) -> list[str]:
        """The views that some collection reads."""
        return list(dict.fromkeys(item.view for item in self.collections))


def make_plan(suite: Mapping[str, Any], switches: Switches = lambda _: {}) -> Plan:
    """Bind every metric of a suite.

    Args:
        suite: the suite's section: `views`, `metrics`, `collectors`, and the collectors' settings.
        switches: options that `compat` sets, by the metric function's name; what the metric's entry says
            wins.

    Raises:
        UserError: everything that is wrong with the entries, together.
    """
    views = parse_views(suite.get("views") or {})
    entries = {name: node for name, node in (suite.get("metrics") or {}).items() if is_on(node)}
    collectors = collectors_of(suite)
    binder = _Binder(suite, list(views), list(entries), collectors, switches)
    faults: list[Fault] = []
    bound: dict[str, BoundMetric] = {}
    for name, node in entries.items():
        try:
            bound[name] = binder.bind(name, node)
        except UserError as error:
            faults += [Fault(f"metric {name}: {fault.message}", fault.hint) for fault in error.faults]
    ordered = _ordered(bound) if not faults else []
    collections = dict.fromkeys(
        need for metric in ordered for need in metric.needs.values() if isinstance(need, Collection)
    )
    by_kind = {collector.kind: collector for collector in collectors.values()}
    for item in collections:
        try:
            by_kind[item.kind].check(dict(item.settings))
        except UserError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise UserError.of(faults)
    return Plan(tuple(ordered), tuple(collections), views, by_kind)


def is_on(node: Any) -> bool:
    """Whether a metric's entry asks for it: null and `enabled: false` do not."""
    return node is not None and not (isinstance(node, Mapping) and node.get("enabled") is False)


@dataclass(frozen=True)
class _Binder:
    """Binds the entries of one suite.

    Attributes:
        suite: the suite's section.
        views: names of its views.
        metrics: names of its metrics.
        collectors: by the type of their tables.
        switches: options that `compat` sets.
    """

    suite: Mapping[str, Any]
    views: Sequence[str]
    metrics: Sequence[str]
    collectors: Mapping[type[Table], Collector]
    switches: Switches

    def bind(self, name: str, node: Any) -> BoundMetric:
        """A metric with its needs and options."""
        if not isinstance(node, Mapping) or not isinstance(node.get("handler"), str):
            raise UserError("it has no handler", "give handler: module:function")
        function = load_named(node["handler"], "function")
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
        positional = [item.name for item in parameters if item.kind is not item.KEYWORD_ONLY]
        keyword = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
        sections = [collector.section for collector in self.collectors.values()]
        given = {key: value for key, value in node.items() if key not in (*RESERVED, *sections)}
        known = [*positional, *keyword]
        faults = [unknown("need or option", key, known) for key in given if key not in known]
        switched = dict(self.switches(function.__name__))
        options = {**switched, **{key: value for key, value in given.items() if key in keyword}}
        what = f"switch of {function.__name__}"
        faults += [unknown(what, key, list(keyword)) for key in switched if key not in keyword]
        needs: dict[str, Any] = {}
        for need in positional:
            try:
                needs[need] = self._need(need, hints[need], given.get(need), node, {**keyword, **options})
            except UserError as error:
                faults += error.faults
        if faults:
            raise UserError.of(faults)
        return BoundMetric(name, function, needs, options, bool(node.get("summary", True)))

    def _need(
        self, name: str, hint: Any, given: Any, entry: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Collection | str | tuple[str, ...] | None:
        """What one positional parameter reads, by the type it is annotated with."""
        if RetainLogs in (hint, *typing.get_args(hint)):
            return None
        collector = self.collectors.get(hint)
        if given is None:
            what = "metric" if collector is None else "view"
            raise UserError(f"{name!r} is not bound", f"give {name}: the name of a {what}")
        if isinstance(hint, type) and issubclass(hint, Table) and collector is None:
            kinds = ", ".join(other.kind for other in self.collectors.values())
            raise UserError(
                f"{name!r} is a {hint.__name__}, which no collector of this suite makes",
                f"list its collector under collectors: [module:Name]; there are: {kinds}",
            )
        if collector is not None:
            if given not in self.views:
                raise UserError.of([unknown("view", str(given), self.views)])
            settings = settings_of(collector, self.suite, entry, options)
            pairs = sorted((key, _frozen(value)) for key, value in settings.items())
            return Collection(collector.kind, given, tuple(pairs))
        names = tuple(given) if typing.get_origin(hint) is tuple else (given,)
        faults = [unknown("metric", str(item), self.metrics) for item in names if item not in self.metrics]
        if faults:
            raise UserError.of(faults)
        return names if typing.get_origin(hint) is tuple else str(given)


def _ordered(bound: Mapping[str, BoundMetric]) -> list[BoundMetric]:
    """Each metric after those that it reads.

    Raises:
        UserError: metrics that read each other in a circle.
    """
    ordered: dict[str, BoundMetric] = {}
    waiting = dict(bound)
    while waiting:
        ready = [
            name
            for name, metric in waiting.items()
            if all(need in ordered for need in metric.metrics_needed())
        ]
        if not ready:
            raise UserError(
                f"these metrics read each other in a circle: {', '.join(waiting)}",
                "let one of them read a view",
            )
        for name in ready:
            ordered[name] = waiting.pop(name)
    return list(ordered.values())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
