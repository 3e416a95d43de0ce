"""The forget rows of an epoch in the order of their difficulty scores; the retain rows do not move.

A row with a high score is forgotten first (see `influence.row_scores`). So `score_asc` begins with the rows
that are forgotten slowly, and `score_desc` with those that are forgotten fast ("easy first").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from expunge.core.errors import UserError
from expunge.core.ranges import Count
from expunge.data.pairs import PairedDataset
from expunge.training.order import epoch_order

FORGET_ORDER_FILE = "pairs/forget_order.json"
Order = Literal["none", "score_asc", "score_desc"]


class ScoreOrder(NamedTuple):
    """Which forget rows are kept, and in which order.

    Attributes:
        kept: positions of the kept rows, ascending; None = all.
        rank: rank of each kept row in the order, from 0; None = the rows come as drawn.
    """

    kept: tuple[int, ...] | None
    rank: tuple[int, ...] | None


def score_order(
    scores: Mapping[str, float],
    uids: Sequence[str],
    *,
    order: Order = "none",
    select: Literal["first_k"] | None = None,
    k: Count | None = None,
    select_by: Literal["score_asc", "score_desc"] | None = None,
) -> ScoreOrder:
    """Sort and select rows by their scores; rows of equal scores are sorted by uid.

    Args:
        scores: score by uid.
        uids: uids of the forget rows, by position.
        order: order of each epoch's forget rows: `none` (as drawn), `score_asc` (low scores, which are
            forgotten slowly, first) or `score_desc`.
        select: `first_k` = unlearn the first k rows only, in any order.
        k: number of rows to keep.
        select_by: the order that `first_k` refers to; None = `order`.

    Returns:
        The kept rows and their ranks.

    Raises:
        UserError: a selection without `k` or without an order, or of more rows than there are.
    """
    kept: tuple[int, ...] | None = None
    if select is not None:
        by = select_by or order
        if k is None:
            raise UserError(f"difficulty.select={select} needs the number of rows", "set difficulty.k")
        if by == "none":
            raise UserError(f"difficulty.select={select} needs an order", "set difficulty.select_by")
        if k > len(uids):
            raise UserError(
                f"difficulty.k={k}: there are only {len(uids)} forget rows", f"give at most {len(uids)}"
            )
        kept = tuple(sorted(_sorted(scores, uids, by)[: int(k)]))
    if order == "none":
        return ScoreOrder(kept, None)
    there = [uids[position] for position in kept] if kept is not None else uids
    rank = [0] * len(there)
    for place, position in enumerate(_sorted(scores, there, order)):
        rank[position] = place
    return ScoreOrder(kept, tuple(rank))


def _sorted(scores: Mapping[str, float], uids: Sequence[str], order: str) -> list[int]:
    """Positions in the order of the scores."""
    sign = -1.0 if order == "score_desc" else 1.0
    return sorted(range(len(uids)), key=lambda position: (sign * scores[uids[position]], uids[position]))


class InScoreOrder:
    """Pairs whose forget rows come in the order of their scores.

    An epoch takes the same forget rows as without an order, and the same items in the same steps; only the
    forget row (and its alternate) of an item changes. If the retain rows are the anchor and a forget row
    comes several times in an epoch, every row comes once, in order, before any row comes again.

    Args:
        pairs: the pairs as drawn.
        rank: rank of each forget row in the order.
        seed: seed of the order of items, see `order.epoch_order`.
    """

    def __init__(self, pairs: PairedDataset, rank: Sequence[int], seed: int) -> None:
        self.pairs, self.rank, self.seed = pairs, tuple(rank), seed
        self._forget: list[int] = []
        self.set_epoch(pairs.epoch)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pairs.item(index, forget=self._forget[index])

    def set_epoch(self, epoch: int) -> None:
        """Draw the pairs of an epoch, and sort the forget rows."""
        self.pairs.set_epoch(epoch)
        items = epoch_order(len(self.pairs), self.seed, epoch)
        self._forget = [0] * len(items)
        for item, row in zip(items, self.forget_rows(items), strict=True):
            self._forget[item] = row

    def forget_rows(self, items: Sequence[int]) -> list[int]:
        """The forget rows of these items of the epoch, sorted."""
        seen: Counter[int] = Counter()
        keyed = []
        for row in map(self.pairs.forget_row, items):
            keyed.append((seen[row], self.rank[row], row))
            seen[row] += 1
        return [row for _, _, row in sorted(keyed)]

    def sequence(self, epoch: int) -> list[int]:
        """The forget rows of an epoch in the order of training."""
        self.set_epoch(epoch)
        return [self._forget[item] for item in epoch_order(len(self.pairs), self.seed, epoch)]
