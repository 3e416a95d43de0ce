"""Evaluate a model on a suite: collect tables that are not cached, compute the metrics, write the files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from expunge.core.fingerprint import code_version, fingerprint
from expunge.core.layout import EXPUNGE, RunLayout
from expunge.evaluation.collect.collector import Absent, Cost, Request, Subject
from expunge.evaluation.plan import Collection
from expunge.evaluation.scoring import results_of, row_ids
from expunge.evaluation.suite import Suite
from expunge.evaluation.suite_scores import Scores
from expunge.evaluation.table_store import TableStore
from expunge.evaluation.tables import Table
from expunge.lm import runtime
from expunge.models.fingerprint import model_fingerprint
from expunge.models.outputs import unwrapped
from expunge.models.parallel import Parallel

log = logging.getLogger(__name__)
NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Keys of a model's configuration that change no number, or that the key has already."""


def evaluate_suite(
    suite: Suite,
    model: Any,
    *,
    out_dir: Path | None,
    cache: Path | None = None,
    compute_dtype: torch.dtype | None = None,
    fingerprint_of_model: str | None = None,
    layout: RunLayout = EXPUNGE,
) -> Scores:
    """Evaluate a model.

    Collective: with several ranks, each calls it with the same model and gets the same scores. The rows are
    distributed over the ranks; rank 0 computes the metrics and writes the files.

    Args:
        suite: from `prepare_suite`.
        model: causal language model, wrapped or not; its training mode is restored.
        out_dir: folder of `<SUITE>_EVAL.json` and `<SUITE>_SUMMARY.json` (`layout` may name them otherwise);
            None = no files.
        cache: folder of tables; None = `tables/` in `out_dir`.
        compute_dtype: dtype of autocast.
        fingerprint_of_model: of the weights, if the caller knows it; None = the model's tensors are hashed.
        layout: the names of the files in `out_dir`.

    Returns:
        The scores. If `out_dir` already has the files of the same evaluation and the suite does not
        overwrite, the scores are read from them.
    """
    suite = suite.within(longest_of(model))
    subject = Subject(model, suite.template.tokenizer, suite.section, compute_dtype, Parallel.of(model))
    identity = (_model_key(model, fingerprint_of_model), subject.dtype, code_version())
    keys = {
        item: fingerprint([item.kind, item.settings, suite.views[item.view].fingerprint, *identity])
        for item in suite.plan.collections
        if item.view in suite.views
    }
    key = _key_of_all(suite, keys)
    known = runtime.from_rank_0(lambda: _known(suite, out_dir, layout, key))
    if known is not None:
        log.info("%s: nothing changed since the evaluation in %s", suite.name, out_dir)
        return known
    store = TableStore(cache if cache is not None else out_dir / "tables" if out_dir is not None else None)
    collected = _collect(subject, suite, keys, store)

    def scored() -> Scores:
        scores = _scores(suite, collected, identity, key)
        if out_dir is not None:
            scores.write(out_dir, layout)
        return scores

    return runtime.from_rank_0(scored)


@dataclass
class _Collected:
    """Tables, the reasons for missing ones, and the costs by kind; ranks other than 0 have only costs."""

    tables: dict[Collection, Table] = field(default_factory=dict)
    absent: dict[Collection, str] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)

    def keep(self, item: Collection, table: Table | Absent, store: TableStore, key: str) -> None:
        """Add a table that was collected, and save it."""
        if isinstance(table, Absent):
            self.absent[item] = table.reason
            return
        self.tables[item] = table
        store.save(key, item.kind, table)


def _known(suite: Suite, out_dir: Path | None, layout: RunLayout, key: str) -> Scores | None:
    """The scores of the same evaluation, if its files exist."""
    if out_dir is None or suite.overwrite:
        return None
    known = Scores.read(out_dir, suite.name, layout)
    same = known is not None and known.about.get("key") == key and not known.about.get("absent")
    return known if same else None


def _collect(subject: Subject, suite: Suite, keys: Mapping[Collection, str], store: TableStore) -> _Collected:
    """Every table whose view exists, from the store or newly collected, one kind after another."""
    made = _Collected()
    for kind in dict.fromkeys(item.kind for item in keys):
        collector = suite.plan.collectors[kind]
        wanted = [item for item in keys if item.kind == kind]
        if runtime.rank() == 0 and not suite.overwrite:
            stored = {item: store.load(keys[item], collector.table) for item in wanted}
            made.tables |= {item: table for item, table in stored.items() if table is not None}
        # Rank 0 decides what is missing: ranks that disagree would wait for each other forever.
        missing = runtime.from_rank_0(lambda: [item for item in wanted if item not in made.tables])  # noqa: B023
        if not missing:
            continue
        requests = [Request(suite.views[item.view], dict(item.settings)) for item in missing]
        tables = collector.collect(subject, requests, made.cost.setdefault(kind, Cost()))
        for item, table in zip(missing, tables, strict=True):
            # Saved immediately: after an interruption it need not be collected again.
            runtime.from_rank_0(partial(made.keep, item, table, store, keys[item]))
    return made


def _scores(suite: Suite, collected: _Collected, identity: tuple[str, ...], key: str) -> Scores:
    results = results_of(suite, collected.tables, collected.absent)
    for name, result in results.items():
        if result.value is None:
            log.warning("%s: %s is null: %s", suite.name, name, result.why_missing)
    about = {
        "key": key,
        "suite": suite.name,
        "forget_split": suite.section.get("forget_split"),
        "template": suite.template.fingerprint,
        "model": identity[0],
        "dtype": identity[1],
        "code": identity[2],
        "retain_logs_path": str(suite.logs.path) if suite.logs is not None else None,
        "cost": {kind: asdict(value) for kind, value in collected.cost.items()},
        "views": {name: view.about() for name, view in suite.views.items()},
        "row_ids": row_ids(results),
        # A table that could not be collected may be available next time.
        "absent": {item.view: reason for item, reason in collected.absent.items()},
    }
    listed = {metric.name for metric in suite.plan.metrics if metric.in_summary}
    order = [name for name in suite.section["metrics"] if name in results]
    summary = tuple(name for name in order if name in listed)
    return Scores(suite.name, {name: results[name].as_json() for name in order}, summary, about)


def longest_of(model: Any) -> int | None:
    """Maximum number of tokens by the model's configuration; None if it does not say."""
    inner: Any = unwrapped(model)
    config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
    longest = getattr(config, "max_position_embeddings", None)
    return int(longest) if longest else None


def _model_key(model: Any, of_weights: str | None) -> str:
    """Fingerprint of a model: its weights, its configuration and the tokens that end its generations."""
    inner: Any = unwrapped(model)
    config = {key: value for key, value in inner.config.to_dict().items() if key not in NOT_COMPUTED}
    ends = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    return fingerprint([of_weights or model_fingerprint(inner), config, ends])


def _key_of_all(suite: Suite, keys: Mapping[Collection, str]) -> str:
    """Fingerprint of everything that the evaluation depends on."""
    metrics = [
        [
            item.name,
            f"{item.function.__module__}:{item.function.__qualname__}",
            repr(item.needs),
            dict(item.options),
        ]
        for item in suite.plan.metrics
    ]
    listed = [metric.name for metric in suite.plan.metrics if metric.in_summary]
    logs = suite.logs.fingerprint if suite.logs else None
    return fingerprint([metrics, listed, sorted(keys.values()), suite.bootstrap, logs, code_version()])
