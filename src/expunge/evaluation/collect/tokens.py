"""One teacher-forced pass over the union of the views: statistics of each label token."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.collect.prefix_trees import Tree, can_share, grow, pack
from expunge.evaluation.collect.rounding import rounded_statistics
from expunge.evaluation.tables import Examples, TokenTable, as_ints
from expunge.lm.labels import LabelIndex, on_device
from expunge.lm.packing import token_budgeted_batches
from expunge.models.outputs import label_outputs, unwrapped

log = logging.getLogger(__name__)


Statistics = tuple[np.ndarray[Any, Any], ...]
"""The columns of `Rounded` for one example's n label tokens, each [n]."""


class Tokens(Collector):
    """Statistics of each label token; all views of a suite share one pass."""

    kind = "tokens"
    table = TokenTable
    of_suite: ClassVar[Mapping[str, Any]] = {"field_rounding": True}

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[TokenTable]:
        """All tables from one pass."""
        views = {str(number): (view.encoded, view.examples) for number, (view, _) in enumerate(requests)}
        # A setting of the whole suite: it is equal in all requests.
        rounding = bool(requests[0].settings["field_rounding"])
        yield from collect_tokens(subject, views, cost, rounding).values()


def collect_tokens(
    subject: Subject,
    views: Mapping[str, tuple[Sequence[Encoded], Examples]],
    cost: Cost,
    field_rounding: bool = True,
) -> dict[str, TokenTable]:
    """Make the tables of several views in one pass; an example that occurs in several views is computed once.

    The token budget of a batch is batch_size x longest example, so a batch usually has more rows. With the
    suite's `share_prefixes`, the question of several answers is processed once, if the model supports it. An
    example without labels has no tokens in its table. For `field_rounding`, see `rounding`.
    """
    unique: dict[tuple[Any, ...], int] = {}
    numbers = {
        name: [unique.setdefault(_key(item), len(unique)) for item in encoded]
        for name, (encoded, _) in views.items()
    }
    firsts = {_key(item): item for encoded, _ in views.values() for item in encoded}
    examples = [firsts[key] for key in unique]
    longest = max(map(len, examples), default=1)
    share = bool(subject.suite.get("share_prefixes", True))
    trees = grow(examples, share and can_share(unwrapped(subject.model), longest))
    batches = token_budgeted_batches([len(tree) for tree in trees], subject.batch_size * longest)
    log.info("tokens: %d examples in %d sequences, %d batches", len(examples), len(trees), len(batches))
    made: dict[int, Statistics] = {}
    with running(subject.model, cost):
        for batch in subject.parallel.mine(batches):
            made |= _forward(subject, [trees[line] for line in batch], field_rounding, cost)
        found = subject.parallel.merged(made)
    cost.examples += sum(map(len, numbers.values()))
    cost.unique += len(examples)
    return {
        name: _table(encoded, rows, [found.get(number) for number in numbers[name]])
        for name, (encoded, rows) in views.items()
    }


def _key(example: Encoded) -> tuple[Any, ...]:
    return example.input_ids, example.label_mask, example.hidden


def _forward(
    subject: Subject, trees: Sequence[Tree], field_rounding: bool, cost: Cost
) -> dict[int, Statistics]:
    where, dtype = subject.device, next(iter(subject.model.parameters())).dtype
    packed = pack(trees, subject.pad_id, dtype)
    side, labels = on_device(packed.side, where), LabelIndex(*[value.to(where) for value in packed.labels])
    kwargs: dict[str, Any] = {name: value.to(where) for name, value in packed.kwargs.items()}
    with subject.autocast():
        outputs = label_outputs(subject.model, side, index=labels, **kwargs)
    statistics = rounded_statistics(outputs.logits_BNV, outputs.label_BN, field_rounding)
    cost.forward_tokens += packed.tokens
    cost.padded_tokens += packed.side["input_ids"].numel()
    flat = [value_BN[outputs.mask_BN].cpu().numpy() for value_BN in statistics]
    return {example: tuple(value_M[way] for value_M in flat) for example, way in packed.ways.items()}


def _table(encoded: Sequence[Encoded], rows: Examples, found: Sequence[Statistics | None]) -> TokenTable:
    none = np.zeros(0, np.float32)
    empty = (none, np.zeros(0, bool), none, none, none)
    known = [statistics if statistics is not None else empty for statistics in found]
    columns = [np.concatenate(values) for values in zip(empty, *known, strict=True)]
    ends = [
        position == example.turn_end
        for example in encoded
        for position, counted in enumerate(example.label_mask)
        if counted
    ]
    offset_B1 = as_ints(np.cumsum([0, *[len(statistics[0]) for statistics in known]]).tolist())
    logp_M, hit_M, mu_M, var_M, nll_M = columns
    return TokenTable(rows, offset_B1, logp_M, hit_M, mu_M, var_M, np.array(ends, dtype=bool), nll_M)
