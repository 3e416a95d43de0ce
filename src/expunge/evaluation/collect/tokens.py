"""One teacher-forced pass over the union of the views: statistics of each label token."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.collect.packing import Packed, Tree, can_share, grow, pack
from expunge.evaluation.collect.rounding import rounded_statistics
from expunge.evaluation.tables import Examples, TokenTable, as_ints
from expunge.lm import runtime
from expunge.lm.labels import LabelIndex, on_device
from expunge.lm.packing import token_budgeted_batches
from expunge.models.outputs import label_outputs, unwrapped
from expunge.models.parallel import Parallel

log = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """Statistics of one example's n label tokens, each [n]."""

    logp: np.ndarray[Any, np.dtype[np.float32]]
    hit: np.ndarray[Any, np.dtype[np.bool_]]
    mu: np.ndarray[Any, np.dtype[np.float32]]
    var: np.ndarray[Any, np.dtype[np.float32]]
    nll: np.ndarray[Any, np.dtype[np.float32]]


class Tokens(Collector):
    """Statistics of each label token; all views of a suite share one pass."""

    kind = "tokens"
    table = TokenTable
    of_suite: ClassVar[Mapping[str, Any]] = {"field_rounding": True}

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[TokenTable]:
        """All tables from one pass."""
        views = {str(number): (view.encoded, view.examples) for number, (view, _) in enumerate(requests)}
        # A setting of the whole suite: it is equal in all requests.
        rounding, share = requests[0].settings["field_rounding"], subject.suite.get("share_prefixes", True)
        how = {**subject.batching, "share_prefixes": bool(share), "field_rounding": bool(rounding)}
        yield from collect_tokens(subject.model, views, **how, cost=cost).values()


def collect_tokens(
    model: Any,
    views: Mapping[str, tuple[Sequence[Encoded], Examples]],
    *,
    pad_id: int,
    batch_size: int = 32,
    compute_dtype: torch.dtype | None = None,
    share_prefixes: bool = True,
    field_rounding: bool = True,
    parallel: Parallel | None = None,
    cost: Cost | None = None,
) -> dict[str, TokenTable]:
    """Make the tables of several views in one pass; an example that occurs in several views is computed once.

    Args:
        model: causal language model, wrapped or not.
        views: name -> examples and their rows.
        pad_id: token to pad with.
        batch_size: token budget of a batch = batch_size x longest example, so a batch usually has more rows.
        compute_dtype: autocast to it.
        share_prefixes: process the question of several answers once, if the model supports it.
        field_rounding: round like published numbers, see `rounding`.
        parallel: how the rows are split over processes; None = as the weights are.
        cost: counts are added to it.

    Returns:
        Name -> table. An example without labels has no tokens in it.
    """
    unique: dict[tuple[Any, ...], int] = {}
    numbers = {
        name: [unique.setdefault(_key(item), len(unique)) for item in encoded]
        for name, (encoded, _) in views.items()
    }
    firsts = {_key(item): item for encoded, _ in views.values() for item in encoded}
    examples = [firsts[key] for key in unique]
    longest = max(map(len, examples), default=1)
    trees = grow(examples, share_prefixes and can_share(unwrapped(model), longest))
    batches = token_budgeted_batches([len(tree) for tree in trees], batch_size * longest)
    log.info("tokens: %d examples in %d sequences, %d batches", len(examples), len(trees), len(batches))
    made: dict[int, Statistics] = {}
    parallel = Parallel.of(model) if parallel is None else parallel
    with running(model, cost) as cost:
        for batch in parallel.mine(batches):
            packed = [trees[line] for line in batch]
            made |= _forward(model, packed, pad_id, compute_dtype, field_rounding, cost)
        found = parallel.merged(made)
    cost.examples += sum(map(len, numbers.values()))
    cost.unique += len(examples)
    return {
        name: _table(encoded, rows, [found.get(number) for number in numbers[name]])
        for name, (encoded, rows) in views.items()
    }


def _key(example: Encoded) -> tuple[Any, ...]:
    return example.input_ids, example.label_mask, example.hidden


def _forward(
    model: Any,
    trees: Sequence[Tree],
    pad_id: int,
    compute_dtype: torch.dtype | None,
    field_rounding: bool,
    cost: Cost,
) -> dict[int, Statistics]:
    where = Parallel.of(model).device
    packed = _moved(pack(trees, pad_id, next(model.parameters()).dtype), where)
    arguments: dict[str, Any] = dict(packed.kwargs)
    with runtime.autocast(where, compute_dtype):
        outputs = label_outputs(model, packed.side, index=packed.labels, **arguments)
    statistics = rounded_statistics(outputs.logits_BNV, outputs.label_BN, field_rounding)
    cost.forward_tokens += packed.tokens
    cost.padded_tokens += packed.side["input_ids"].numel()
    flat = [value_BN[outputs.mask_BN].cpu().numpy() for value_BN in statistics]
    return {example: Statistics(*(value_M[way] for value_M in flat)) for example, way in packed.ways.items()}


def _moved(packed: Packed, where: torch.device) -> Packed:
    side = on_device(packed.side, where)
    kwargs = {name: value.to(where) for name, value in packed.kwargs.items()}
    return packed._replace(
        side=side, labels=LabelIndex(*[value.to(where) for value in packed.labels]), kwargs=kwargs
    )


def _table(encoded: Sequence[Encoded], rows: Examples, found: Sequence[Statistics | None]) -> TokenTable:
    none = np.zeros(0, np.float32)
    empty = Statistics(none, np.zeros(0, bool), none, none, none)
    known = [statistics if statistics is not None else empty for statistics in found]
    columns = [
        np.concatenate([statistics[field] for statistics in known] or [empty[field]])
        for field in range(len(empty))
    ]
    ends = [
        position == example.turn_end
        for example in encoded
        for position, counted in enumerate(example.label_mask)
        if counted
    ]
    offset_B1 = as_ints(np.cumsum([0, *[len(statistics.logp) for statistics in known]]).tolist())
    logp_M, hit_M, mu_M, var_M, nll_M = columns
    return TokenTable(rows, offset_B1, logp_M, hit_M, mu_M, var_M, np.array(ends, dtype=bool), nll_M)
