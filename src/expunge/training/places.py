"""The positions ("places") that a loss looks at: the labels, all tokens, or those of the field's code.

Each choice rewrites a side of the batch on the CPU when it is collated, so that model and reference see the
same positions. Only ME, which looks at whole rows, and compat switches use other places than the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from expunge.core.errors import UserError
from expunge.lm.labels import Batch, Side

PLACES = {
    "labels": "the positions that predict a label",
    "tokens": "the positions that predict a token, including the prompt's, without padding",
    "predictors": "all positions that have a successor, including prompt and padding",
    "all": "all positions, including prompt, padding and the last, which predicts nothing",
    "own": "the positions of the labels themselves, not shifted",
}
IGNORED = -100
"""The field's label at a position that predicts no label."""

Place = tuple[str, str, int]
"""The positions of a token mean: a side, one of `PLACES`, and the number of leading labels to skip."""


def at_places(sides: Mapping[str, Side], places: str) -> Batch:
    """Rewrite the sides of a batch so that their labels are at `places`.

    Args:
        sides: as collated.
        places: one of `PLACES`.

    Raises:
        UserError: `places` is unknown.
    """
    if places not in PLACES:
        raise UserError(f"unknown places {places!r}", f"choose one of {', '.join(PLACES)}")
    if places == "labels":
        return dict(sides)
    return {name: _rewritten(side, places) for name, side in sides.items()}


def count_labels(side: Side, skip: int = 0) -> int:
    """The number of labels of a laid out side that count; nothing predicts a label at position 0."""
    return side["host"].count(skip)


def special(places: Iterable[Place]) -> tuple[Place, ...]:
    """Those places that are not simply all labels of a side, in the same order on all ranks."""
    return tuple(sorted({place for place in places if place[0] and place[1:] != ("labels", 0)}))


def _rewritten(side: Side, places: str) -> Side:
    ids_BT, mask_BT = side["input_ids"], side["label_mask"]
    # The labels as the field's code sees them.
    shown_BT = ids_BT.masked_fill(~mask_BT, IGNORED)
    attention_BT = side["attention_mask"]
    if places == "tokens":
        real_BT = attention_BT.bool()
        # With padding on either side, no position predicts the first token of a row.
        return {**side, "label_mask": real_BT & torch.nn.functional.pad(real_BT[:, :-1], (1, 0))}
    if places == "predictors":
        mask_BT = torch.ones_like(mask_BT)
    else:
        # A column that nothing attends to, after the last position, so that this one predicts something.
        ids_BT, attention_BT, mask_BT = (
            torch.nn.functional.pad(value, (0, 1)) for value in (ids_BT, attention_BT, mask_BT)
        )
        shown_BT = torch.nn.functional.pad(shown_BT, (0, 1), value=IGNORED)
        mask_BT = torch.ones_like(mask_BT) if places == "all" else mask_BT.roll(1, -1)
    # The field passes no position ids, so padding on the right has positions too.
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    rewritten: Side = {
        **side,
        "input_ids": ids_BT,
        "attention_mask": attention_BT,
        "label_mask": mask_BT,
        "position_ids": positions_BT,
    }
    return rewritten if places == "own" else {**rewritten, "shown": shown_BT}
