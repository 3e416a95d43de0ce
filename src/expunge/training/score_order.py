"""The forget rows of an epoch in the order of their difficulty scores; the retain rows stay where they are.

A high score forgets first (see `influence.difficulty`), so `score_asc` begins with the rows that go slowly,
and `score_desc` with those
that go fast. The orders are named after what is sorted: "easy first" would be the descending one.
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
    """What scores do to a forget set.

    Attributes:
        kept: positions of the rows that are kept, ascending; None = all.
        rank: place in the order of each kept row, from 0; None = the rows come as drawn.
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
    """Sort and select rows by their scores; rows of equal scores come by uid.

    Args:
        scores: score by uid.
        uids: of the forget rows, by position.
        order: of each epoch's forget rows: `none` (as drawn), `score_asc` (low scores, which forget slowly,
            first) or `score_desc`.
        select: `first_k` = only the first k rows are unlearned, in whatever order they are taken.
        k: how many.
        select_by: the order of which `first_k` are the first; None = that of `order`.

    Returns:
        Which rows are kept, and their places.

    Raises:
        UserError: a selection without its k, or of more rows than there are.
    """
    kept: tuple[int, ...] | None = None
    if select is not None:
        by = select_by or order
        if by == "none" or k is None:
            raise UserError(
                f"difficulty.select={select} with k={k}, by {by}",
                "give select=first_k, k=ROWS, and select_by or an order",
            )
        if k > len(uids):
            raise UserError(
                f"difficulty.k={k}: there are {len(uids)} forget rows", f"give at most {len(uids)}"
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

    The epoch takes the same forget rows as without an order, and the same items in the same steps; only which
    forget row (and which alternate of it) an item has is another. Where the retain rows are the anchor and a
    forget row comes several times in an epoch, every row comes once, in order, before any comes again.

    Args:
        pairs: the pairs as drawn.
        rank: place of each forget row in the order.
        seed: of the order of items, see `order.epoch_order`.
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
        """Draw the pairs of an epoch and lay the forget rows in order."""
        self.pairs.set_epoch(epoch)
        items = epoch_order(len(self.pairs), self.seed, epoch)
        self._forget = [0] * len(items)
        for item, row in zip(items, self.forget_rows(items), strict=True):
            self._forget[item] = row

    def forget_rows(self, items: Sequence[int]) -> list[int]:
        """The forget rows of these items of the epoch, in order."""
        seen: Counter[int] = Counter()
        keyed = []
        for row in map(self.pairs.forget_row, items):
            keyed.append((seen[row], self.rank[row], row))
            seen[row] += 1
        return [row for _, _, row in sorted(keyed)]

    def sequence(self, epoch: int) -> list[int]:
        """The forget rows of an epoch as training goes through them."""
        self.set_epoch(epoch)
        return [self._forget[item] for item in epoch_order(len(self.pairs), self.seed, epoch)]
