"""From a suite's configuration to what has to be collected: bound metrics in order, and the union of their needs."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.core.errors import Fault, UserError, unknown
from expunge.core.fingerprint import fingerprint
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.tables import TABLES, GenerationTable, GradNormTable, HarnessTable, Table
from expunge.evaluation.views import ViewSpec, parse_views

Switches = Callable[[str], Mapping[str, Any]]
RESERVED = ("handler", "summary", "generation", "enabled")
"""Keys of a metric's entry that are neither needs nor options."""

SETTINGS = {GradNormTable.KIND: ("p", "train_mode"), HarnessTable.KIND: ("limit", "num_fewshot")}
"""Options of a metric that are settings of a collector as well."""

RETAIN_LOGS = "retain_logs"


@dataclass(frozen=True)
class Collection:
    """One table: what to collect on which view with which settings.

    Attributes:
        kind: of the table: tokens, generations, gradnorms, choices or harness.
        view: name of the view.
        settings: of the collector, as sorted pairs.
    """

    kind: str
    view: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def identity(self) -> str:
        """Hash of kind and settings."""
        return fingerprint([self.kind, self.settings])


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
    """

    metrics: tuple[BoundMetric, ...]
    collections: tuple[Collection, ...]
    views: Mapping[str, ViewSpec]

    def view_names(self) -> list[str]:
        """The views that some collection reads."""
        return list(dict.fromkeys(item.view for item in self.collections))


def make_plan(suite_cfg: Mapping[str, Any], switches: Switches = lambda _: {}) -> Plan:
    """Bind every metric of a suite.

    Args:
        suite_cfg: `views`, `metrics`, `generation`.
        switches: options that `compat` sets, by the metric function's name; what the metric's entry says
            wins.

    Raises:
        UserError: everything that is wrong with the entries, together.
    """
    views = parse_views(suite_cfg.get("views") or {})
    entries = {name: node for name, node in (suite_cfg.get("metrics") or {}).items() if is_on(node)}
    generation = dict(suite_cfg.get("generation") or {})
    faults: list[Fault] = []
    bound: dict[str, BoundMetric] = {}
    for name, node in entries.items():
        try:
            bound[name] = _bind(name, node, list(views), list(entries), generation, switches)
        except UserError as error:
            faults += [Fault(f"metric {name}: {fault.message}", fault.hint) for fault in error.faults]
    if faults:
        raise UserError.of(faults)
    ordered = _ordered(bound)
    collections = dict.fromkeys(
        need for metric in ordered for need in metric.needs.values() if isinstance(need, Collection)
    )
    return Plan(tuple(ordered), tuple(collections), views)


def is_on(node: Any) -> bool:
    """Whether a metric's entry asks for it: null and `enabled: false` do not."""
    return node is not None and not (isinstance(node, Mapping) and node.get("enabled") is False)


def load_function(handler: str) -> Callable[..., Result]:
    """Import `module:function`.

    Raises:
        UserError: no such module, or no such function in it.
    """
    module_name, _, function_name = handler.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{handler}: there is no module {error.name!r}", "a handler is written as module:function"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_")
        ]
        raise UserError.of([unknown(f"function in {module_name}", function_name, names)])
    return typing.cast(Callable[..., Result], function)


def _bind(
    name: str,
    node: Any,
    views: Sequence[str],
    metrics: Sequence[str],
    generation: Mapping[str, Any],
    switches: Switches,
) -> BoundMetric:
    if not isinstance(node, Mapping) or not isinstance(node.get("handler"), str):
        raise UserError("it has no handler", "give handler: module:function")
    function = load_function(node["handler"])
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    positional = [item.name for item in parameters if item.kind is not item.KEYWORD_ONLY]
    keyword = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    given = {key: value for key, value in node.items() if key not in RESERVED}
    faults = [
        unknown("need or option", key, [*positional, *keyword])
        for key in given
        if key not in positional and key not in keyword
    ]
    options = {
        **switches(function.__name__),
        **{key: value for key, value in given.items() if key in keyword},
    }
    faults += [
        unknown(f"switch of {function.__name__}", key, list(keyword)) for key in options if key not in keyword
    ]
    settled = {**keyword, **options}
    settings = {**generation, **(node.get("generation") or {})}
    needs: dict[str, Any] = {}
    for need in positional:
        try:
            needs[need] = _need(need, hints[need], given.get(need), views, metrics, settled, settings)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError.of(faults)
    return BoundMetric(name, function, needs, options, bool(node.get("summary", True)))


def _need(
    name: str,
    hint: Any,
    given: Any,
    views: Sequence[str],
    metrics: Sequence[str],
    options: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> Collection | str | tuple[str, ...] | None:
    """What one positional parameter reads, by the type it is annotated with."""
    if RetainLogs in (hint, *typing.get_args(hint)):
        return None
    if given is None:
        raise UserError(
            f"{name!r} is not bound",
            f"give {name}: the name of a {'view' if hint in TABLES.values() else 'metric'}",
        )
    if hint in TABLES.values():
        if given not in views:
            raise UserError.of([unknown("view", str(given), views)])
        table = typing.cast(type[Table], hint)
        chosen = (
            generation
            if table is GenerationTable
            else {key: options[key] for key in SETTINGS.get(table.KIND, ()) if key in options}
        )
        return Collection(
            table.KIND, given, tuple(sorted((key, _frozen(value)) for key, value in chosen.items()))
        )
    names = tuple(given) if typing.get_origin(hint) is tuple else (given,)
    faults = [unknown("metric", str(item), metrics) for item in names if item not in metrics]
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
