"""Run a suite: plan, collect what no cache has, compute the metrics, write the files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expunge.core.fingerprint import code_version, fingerprint
from expunge.core.layout import EXPUNGE, RunLayout
from expunge.data.template import Template
from expunge.evaluation.collect.choices import collect_choices
from expunge.evaluation.collect.generations import collect_generations
from expunge.evaluation.collect.gradnorms import collect_gradnorms
from expunge.evaluation.collect.harness import collect_harness
from expunge.evaluation.collect.sharing import from_first
from expunge.evaluation.collect.tokens import Cost, collect_tokens
from expunge.evaluation.plan import BoundMetric, Collection, Plan, make_plan
from expunge.evaluation.reference_rows import hold_against
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.scores import Scores
from expunge.evaluation.store import TableStore
from expunge.evaluation.tables import (
    Absent,
    ChoiceTable,
    GenerationTable,
    GradNormTable,
    HarnessTable,
    Table,
    TokenTable,
)
from expunge.evaluation.views import View, Views, load_views
from expunge.lm import runtime
from expunge.models.fingerprint import model_fingerprint
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)
RESAMPLES = 1000
NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Keys of a model's configuration on which no number depends, or that are in the key already."""


def evaluate_suite(
    model: Any,
    tokenizer: Any,
    suite_cfg: Mapping[str, Any],
    *,
    template: Template,
    data_root: Path | None,
    out_dir: Path | None,
    switches: Callable[[str], Mapping[str, Any]] = lambda _: {},
    cache: Path | None = None,
    compute_dtype: torch.dtype | None = None,
    suite: str = "tofu",
    fingerprint_of_model: str | None = None,
    layout: RunLayout = EXPUNGE,
) -> Scores:
    """Evaluate a model.

    Collective: with several ranks each calls it with the same model, and gets the same scores; rank 0 writes.

    Args:
        model: causal language model, wrapped or not; it is left in the mode it was in.
        tokenizer: of the model.
        suite_cfg: the suite's section of the configuration (`eval.tofu`): `views`, `metrics`, `generation`,
            `batch_size`, `overwrite`, `forget_split`, `retain_logs_path`, `bootstrap: {resamples, seed}`,
            `share_prefixes`, `field_rounding`.
        template: of the model.
        data_root: folder of local data.
        out_dir: where `<SUITE>_EVAL.json` and `<SUITE>_SUMMARY.json`, or what `layout` calls them, go; None =
            they are not written.
        switches: options that `compat` sets for a component: `Config.switches`.
        cache: folder of tables; None = `tables/` in `out_dir`.
        compute_dtype: autocast to it.
        suite: name of the suite; it names the files.
        fingerprint_of_model: of the weights, where the caller knows it; else the model's tensors are hashed.
        layout: the names of the files in `out_dir`.

    Returns:
        The scores. Where `out_dir` holds those of the very same evaluation and `overwrite` is false, these.

    Raises:
        UserError: anything in the suite, the data or the retain logs that cannot be.
    """
    plan = make_plan(suite_cfg, switches)
    views = load_views(
        plan.views, plan.view_names(), template, data_root, switches("encode"), longest_of(model)
    )
    logs = _retain_logs(suite_cfg, suite, template)
    if logs is not None:
        hold_against(logs, plan, views)
    evaluated = _Evaluated(model, tokenizer, suite_cfg, compute_dtype, _identity(model, fingerprint_of_model))
    keys = {item: evaluated.key(item, views[item.view]) for item in plan.collections if item.view in views}
    key = _key_of_all(plan, keys, suite_cfg, logs)
    overwrite = bool(suite_cfg.get("overwrite", False))
    known = from_first(
        Scores.read(out_dir, suite, layout)
        if out_dir is not None and not overwrite and runtime.rank() == 0
        else None
    )
    if known is not None and known.about.get("key") == key and not known.about.get("absent"):
        log.info("%s: nothing changed since the evaluation in %s", suite, out_dir)
        return known
    store = TableStore(cache if cache is not None else out_dir / "tables" if out_dir is not None else None)
    cost: dict[str, Cost] = {}
    tables, absent = _tables(evaluated, plan, views, keys, store, overwrite, cost)
    reasons = _reasons(plan, views, absent)
    results = _results(plan, tables, reasons, logs, _bootstrap(suite_cfg))
    for name, reason in (
        (name, result.why_missing) for name, result in results.items() if result.value is None
    ):
        log.warning("%s: %s is null: %s", suite, name, reason)
    about = {
        "key": key,
        "suite": suite,
        "forget_split": suite_cfg.get("forget_split"),
        "template": template.fingerprint,
        "model": evaluated.model_key,
        "dtype": evaluated.dtype,
        "code": code_version(),
        "retain_logs_path": str(logs.path) if logs is not None else None,
        "cost": {kind: asdict(value) for kind, value in cost.items()},
        "views": {name: view.about() for name, view in views.items()},
        "row_ids": _row_ids(results),
        # What could not be collected may be there the next time.
        "absent": {item.view: reason for item, reason in absent.items()},
    }
    listed = tuple(metric.name for metric in plan.metrics if metric.in_summary)
    order = [name for name in suite_cfg["metrics"] if name in results]
    scores = Scores(
        suite,
        {name: results[name].as_json() for name in order},
        tuple(name for name in order if name in listed),
        about,
    )
    if out_dir is not None and runtime.rank() == 0:
        scores.write(out_dir, layout)
    return scores


@dataclass(frozen=True)
class _Evaluated:
    """The model and how it is run."""

    model: Any
    tokenizer: Any
    suite_cfg: Mapping[str, Any]
    compute_dtype: torch.dtype | None
    model_key: str

    @property
    def dtype(self) -> str:
        """Dtype of the weights and of the computation."""
        return f"{next(self.model.parameters()).dtype}/{self.compute_dtype}"

    @property
    def batch_size(self) -> int:
        return int(self.suite_cfg.get("batch_size", 32))

    @property
    def pad_id(self) -> int:
        """Any valid token serves: what is padded is masked."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @property
    def share_prefixes(self) -> bool:
        return bool(self.suite_cfg.get("share_prefixes", True))

    @property
    def field_rounding(self) -> bool:
        return bool(self.suite_cfg.get("field_rounding", True))

    def key(self, item: Collection, view: View) -> str:
        """What a table depends on."""
        how = self.field_rounding if item.kind == TokenTable.KIND else None
        return fingerprint(
            [item.kind, item.settings, how, view.fingerprint, self.model_key, self.dtype, code_version()]
        )

    def collect(
        self, kind: str, wanted: Mapping[Collection, View], cost: Cost
    ) -> dict[Collection, Table | Absent]:
        """The tables of one kind."""
        common: dict[str, Any] = {"compute_dtype": self.compute_dtype, "cost": cost}
        sized: dict[str, Any] = {**common, "pad_id": self.pad_id, "batch_size": self.batch_size}
        if kind == TokenTable.KIND:
            sized |= {"share_prefixes": self.share_prefixes, "field_rounding": self.field_rounding}
            named = {item.view: (view.encoded, view.examples) for item, view in wanted.items()}
            found = collect_tokens(self.model, named, **sized)
            return {item: found[item.view] for item in wanted}
        made: dict[Collection, Table | Absent] = {}
        for item, view in wanted.items():
            settings = dict(item.settings)
            if kind == ChoiceTable.KIND:
                made[item] = collect_choices(self.model, view.encoded, view.examples, **sized)
            elif kind == HarnessTable.KIND:
                sized_tasks = {
                    **common,
                    "batch_size": self.batch_size,
                    "include_path": view.spec.options.get("include_path"),
                }
                made[item] = collect_harness(
                    self.model, self.tokenizer, str(view.spec.options["task"]), settings, **sized_tasks
                )
            elif kind == GenerationTable.KIND:
                made[item] = collect_generations(
                    self.model, self.tokenizer, view.encoded, view.examples, settings, **sized
                )
            else:
                assert kind == GradNormTable.KIND, kind
                made[item] = collect_gradnorms(self.model, view.encoded, view.examples, settings, **common)
        return made


def _tables(
    evaluated: _Evaluated,
    plan: Plan,
    views: Mapping[str, View],
    keys: Mapping[Collection, str],
    store: TableStore,
    overwrite: bool,
    cost: dict[str, Cost],
) -> tuple[dict[Collection, Table], dict[Collection, str]]:
    """Every table whose view is there: from the store where it has it, else collected, all of one kind together; and why others are not."""
    tables: dict[Collection, Table] = {}
    absent: dict[Collection, str] = {}
    first = runtime.rank() == 0
    for kind in dict.fromkeys(item.kind for item in plan.collections):
        wanted = {item: views[item.view] for item in plan.collections if item.kind == kind and item in keys}
        stored = {item: store.load(keys[item], kind) for item in wanted} if first and not overwrite else {}
        # Rank 0 decides what is missing: ranks that disagreed would wait for each other for ever.
        tables |= from_first({item: table for item, table in stored.items() if table is not None})
        missing = {item: view for item, view in wanted.items() if item not in tables}
        if missing:
            for item, table in evaluated.collect(kind, missing, cost.setdefault(kind, Cost())).items():
                if isinstance(table, Absent):
                    absent[item] = table.reason
                    continue
                tables[item] = table
                if first:
                    store.save(keys[item], table)
    return tables, absent


def _reasons(plan: Plan, views: Views, absent: Mapping[Collection, str]) -> dict[Collection, str]:
    """Why a table is not there, for each that is not."""
    reasons = dict(absent)
    for item in plan.collections:
        if item.view not in views:
            reasons[item] = (
                views.missing.get(item.view)
                or f"there is no view {item.view}: {plan.views[item.view].absent}"
            )
    return reasons


def _results(
    plan: Plan,
    tables: Mapping[Collection, Table],
    reasons: Mapping[Collection, str],
    logs: RetainLogs | None,
    bootstrap: tuple[int, int],
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for metric in plan.metrics:
        result = replace(_compute(metric, tables, reasons, results, logs), name=metric.name)
        results[metric.name] = replace(result, interval=result.bootstrapped(*bootstrap))
    return results


def _compute(
    metric: BoundMetric,
    tables: Mapping[Collection, Table],
    reasons: Mapping[Collection, str],
    results: Mapping[str, Result],
    logs: RetainLogs | None,
) -> Result:
    """A metric on what it reads; null with the reason where something that it reads is not there."""
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
            arguments[name] = logs if need is None else results[need]
    return metric.function(**arguments, **metric.options)


def longest_of(model: Any) -> int | None:
    """Tokens that a model takes at most, as its configuration says; None where it does not."""
    inner: Any = unwrapped(model)
    config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
    longest = getattr(config, "max_position_embeddings", None)
    return int(longest) if longest else None


def _identity(model: Any, of_weights: str | None) -> str:
    """What the numbers depend on of a model: its weights, how its configuration combines them, and what ends its generations."""
    inner: Any = unwrapped(model)
    config = {key: value for key, value in inner.config.to_dict().items() if key not in NOT_COMPUTED}
    ends = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    return fingerprint([of_weights or model_fingerprint(inner), config, ends])


def _retain_logs(suite_cfg: Mapping[str, Any], suite: str, template: Template) -> RetainLogs | None:
    path = suite_cfg.get("retain_logs_path")
    if path is None:
        return None
    return RetainLogs.read(path, suite, split=suite_cfg.get("forget_split"), template=template.fingerprint)


def _bootstrap(suite_cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Resamples and seed."""
    node = suite_cfg.get("bootstrap") or {}
    return int(node.get("resamples", RESAMPLES)), int(node.get("seed", 0))


def _key_of_all(
    plan: Plan, keys: Mapping[Collection, str], suite_cfg: Mapping[str, Any], logs: RetainLogs | None
) -> str:
    """What the whole evaluation depends on."""
    metrics = [
        [
            metric.name,
            f"{metric.function.__module__}:{metric.function.__qualname__}",
            repr(metric.needs),
            dict(metric.options),
        ]
        for metric in plan.metrics
    ]
    listed = [metric.name for metric in plan.metrics if metric.in_summary]
    return fingerprint(
        [
            metrics,
            listed,
            sorted(keys.values()),
            _bootstrap(suite_cfg),
            logs.fingerprint if logs else None,
            code_version(),
        ]
    )


def _row_ids(results: Mapping[str, Result]) -> dict[str, list[str]]:
    """Ids of the rows of every metric that has values a row, so that another run's can be held against them."""
    found = {name: list(result.row_ids) for name, result in results.items() if result.columns}
    for name, result in results.items():
        found |= {f"{name}.{side}": list(part.row_ids) for side, part in result.parts.items() if part.columns}
    return found
