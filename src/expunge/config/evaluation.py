"""A suite as the configuration states it: its collectors, its views, and its metrics with what they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.collectors import ADVICE, NAMES, SECTION, Collecting, bind_collectors
from expunge.config.datasets import check_split
from expunge.config.short_names import SCORERS, VIEWS
from expunge.core.annotations import Type, type_of
from expunge.core.binding import Binder, Bound, Option, Switches
from expunge.core.config import value_at
from expunge.core.errors import unknown
from expunge.core.handlers import Signature, read_signature

RESULT = "expunge.evaluation.results:Result"
RETAIN_LOGS = "expunge.evaluation.retain_logs:RetainLogs"
RESULTS = "results"
"""What `reads` says of several results."""
BOOL = Type("bool")
SUITE_KEYS = {
    "batch_size": Type("int", ranges=(("Above", 0),)),
    "bootstrap.resamples": Type("int", ranges=(("AtLeast", 0),)),
    "bootstrap.seed": Type("int"),
    "overwrite": BOOL,
    "share_prefixes": BOOL,
    "field_rounding": BOOL,
}
"""Types of a suite's own keys. A suite may have further keys for its other keys to refer to."""
OF_VIEWS = ("hf_args", "local", "optional", "max_length", "select", "reshape")
"""Keys of a view of any kind."""


@dataclass(frozen=True)
class _Suite:
    """One suite that is bound; its collectors by the `module:Class` of their tables."""

    key: str
    node: Mapping[str, Any]
    switches: Switches
    collectors: Mapping[str, Collecting]
    views: tuple[str, ...]
    metrics: tuple[str, ...]


def metrics_of(suite: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the metrics that are switched on: null and `enabled: false` switch a metric off."""
    entries = suite.get("metrics") or {}
    off = [name for name, node in entries.items() if node is None or value_at(node, "enabled") is False]
    return {name: node for name, node in entries.items() if name not in off}


def bind_suite(binder: Binder, key: str, suite: Mapping[str, Any], switches: Switches = lambda _: {}) -> None:
    """Bind everything that a suite names, at `KEY.collectors.KIND`, `KEY.views.NAME` and `KEY.metrics.NAME`.

    Args:
        binder: takes the faults, and what was bound.
        key: of the suite, such as `eval.tofu`.
        suite: the section.
        switches: what `compat` sets for a metric function; the entry of the metric takes precedence.
    """
    for name, hint in SUITE_KEYS.items():
        value = value_at(suite, name)
        if value is not None:
            binder.check(f"{key}.{name}", value, hint)
    if not all(binder.check(f"{key}.{name}", suite.get(name), SECTION) for name in ("views", "metrics")):
        return
    collectors = bind_collectors(binder, key, suite.get("collectors"))
    for collector in collectors.values():
        collector.bind_section(binder, key, suite)
    views, metrics = suite.get("views") or {}, metrics_of(suite)
    for name, node in views.items():
        _bind_view(binder, f"{key}.views.{name}", node)
    whole = _Suite(key, suite, switches, collectors, tuple(views), tuple(metrics))
    for name, node in metrics.items():
        _bind_metric(binder, whole, f"{key}.metrics.{name}", name, node)
    bound = {name: binder.bound.get(f"{key}.metrics.{name}") for name in metrics}
    readers = {name: metrics_read(item) if item else () for name, item in bound.items()}
    try:
        TopologicalSorter(readers).prepare()
    except CycleError as error:
        message = f"{key}.metrics: these metrics read each other in a circle: {', '.join(error.args[1][:-1])}"
        binder.fault(message, "change one of them so that it reads a view")


def reads(signature: Signature, name: str) -> str:
    """What a positional parameter of a metric reads, by its annotation.

    Returns:
        `RESULT`, `RESULTS` or `RETAIN_LOGS`; else the `module:Class` of a table; "" where the annotation is
        none of these.
    """
    hint = type_of(signature, name)
    kinds = [item.kind for item in (hint.args if hint.kind == "union" else (hint,)) if item.kind != "None"]
    if kinds == ["list"] and [item.kind for item in hint.args] == [RESULT]:
        return RESULTS
    return kinds[0] if len(kinds) == 1 and ":" in kinds[0] else ""


def metrics_read(metric: Bound) -> tuple[str, ...]:
    """Names of the metrics that a bound metric reads."""
    found: list[str] = []
    for name in metric.signature.positional:
        if name in metric.kwargs and (what := reads(metric.signature, name)) in (RESULT, RESULTS):
            found += metric.kwargs[name] if what == RESULTS else [metric.kwargs[name]]
    return tuple(found)


def _bind_view(binder: Binder, key: str, node: Any) -> None:
    given = dict(node) if isinstance(node, Mapping) else {}
    kind = given.pop("kind", "answers")
    signature = binder.find(f"{key}.kind", kind, VIEWS, "kind of view")
    if signature is None:
        return
    common = read_signature(VIEWS["answers"])
    # A function that takes no rows makes them itself.
    reads_rows = kind == "answers" or "rows" in signature.positional
    hf_args = given.get("hf_args", None if reads_rows else {})
    if not isinstance(hf_args, Mapping):
        binder.fault(f"{key} has no hf_args", "say where its rows are: hf_args: {path, name, split}")
        return
    options = {name: Option(common.keyword[name], type_of(common, name)) for name in OF_VIEWS}
    if kind == "answers":
        own = {name: default for name, default in common.keyword.items() if name not in ("kind", "options")}
        signature = replace(signature, keyword=own)
    binder.bind(key, signature, {**given, "hf_args": hf_args}, options={**options, "kind": Option(kind)})


def _bind_metric(binder: Binder, suite: _Suite, key: str, name: str, node: Any) -> None:
    if not isinstance(node, Mapping) or "handler" not in node:
        hint = unknown("metric", name, [other for other in suite.metrics if other != name]).hint
        binder.fault(f"{key}: unknown metric, it has no handler", hint)
        return
    given = dict(node)
    signature = binder.find(f"{key}.handler", given.pop("handler"), {}, "metric")
    if signature is None:
        return
    options = {name: Option(True, BOOL) for name in ("summary", "enabled")}
    options |= {item.section: Option(None, SECTION) for item in suite.collectors.values() if item.section}
    named = [need for need in signature.positional if reads(signature, need) != RETAIN_LOGS]
    switches, before = suite.switches(signature.name), len(binder.faults)
    binder.bind(key, signature, given, options=options, switches=switches, positional=named, advice=ADVICE)
    for collector in suite.collectors.values():
        collector.bind_section(binder, key, given)
    for need in named:
        _check_need(binder, suite, f"{key}.{need}", signature, need, given.get(need))
    if isinstance(scorer := given.get("scorer"), str) and type_of(signature, "scorer").kind == "str":
        # A scorer of the whole suite is reported once, under the key that was typed.
        shared = suite.node.get("scorer") == scorer
        _bind_scorer(binder, f"{suite.key if shared else key}.scorer", scorer)
    if len(binder.faults) > before:
        binder.bound.pop(key, None)


def _check_need(binder: Binder, suite: _Suite, key: str, signature: Signature, name: str, given: Any) -> None:
    """Note a fault where what a positional parameter reads is not there."""
    what, place = reads(signature, name), f"{key} of {signature.name}"
    if not what:
        hint = "annotate it with a Table, Result, tuple[Result, ...] or RetainLogs | None"
        binder.fault(f"{place}: its annotation does not say what it reads", hint)
    elif what not in (RESULT, RESULTS, *suite.collectors):
        kinds = ", ".join(collector.kind for collector in suite.collectors.values())
        message = f"{place} is a {what.partition(':')[2]}, which no collector of this suite makes"
        hint = f"list its collector in {suite.key}.collectors: [module:Name]; there are: {kinds}"
        binder.fault(message, hint)
    elif given is not None and binder.check(key, given, NAMES if what == RESULTS else Type("str")):
        kind, known = ("metric", suite.metrics) if what in (RESULT, RESULTS) else ("view", suite.views)
        for item in given if what == RESULTS else [given]:
            if item not in known:
                found = unknown(kind, item, known)
                binder.refuse(key, given, found.message, found.hint)


def _bind_scorer(binder: Binder, key: str, scorer: str) -> None:
    """Bind a scorer of texts, unless it is a classifier: a folder, or a name on the hub."""
    if scorer.startswith((".", "/", "~")):
        if not Path(scorer).expanduser().is_dir():
            binder.refuse(key, scorer, "no such folder", "give the folder of a sequence classifier")
    elif ":" in scorer or ("/" not in scorer and not Path(scorer).is_dir()):
        binder.choose(key, scorer, SCORERS, "scorer", places=1)


def check_eval(check: Checking) -> None:
    """Every suite's metrics, views, numbers and files."""
    # With eval=null on the command line, values of an experiment for a suite remain.
    nodes = check.cfg.section("eval").items()
    suites = {name: node for name, node in nodes if isinstance(node, dict) and "metrics" in node}
    for name, node in suites.items():
        _suite(check, f"eval.{name}", node)
    if check.cfg.get("mode") == "eval" and not suites:
        check.fault("there is nothing to evaluate: the group eval is empty", "choose a suite: eval=tofu")


def _suite(check: Checking, key: str, node: dict[str, Any]) -> None:
    bind_suite(check, key, node, check.cfg.switches)
    _retain_logs(check, key, node.get("retain_logs_path"))
    views = node.get("views")
    for name, view in views.items() if isinstance(views, dict) else ():
        hf_args = view.get("hf_args") if isinstance(view, dict) else None
        if not isinstance(hf_args, dict) or "None" in str(hf_args.get("name")):
            continue
        # The rows of an optional view may be missing, unless the user named a file.
        if not view.get("optional") or str(hf_args.get("path")).startswith((".", "/", "~")):
            check_split(check, f"{key}.views.{name}.hf_args", hf_args)


def _retain_logs(check: Checking, key: str, logs: Any) -> None:
    if logs is None:
        return
    from_root = logs == check.cfg.get("retain_logs_path")
    where = "retain_logs_path" if from_root else f"{key}.retain_logs_path"
    path = Path(str(logs)).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        hint = "give the retain model's evaluation file, such as .../TOFU_EVAL.json"
        check.refuse(where, logs, what, f"looked for {path.resolve()}; {hint}")
