"""The positions that a loss looks at: the labels, all tokens, or what the field's code looks at instead.

Each is a rewriting of a side of the batch, done on the CPU where it is collated, so that whoever reads the
side, model or reference, sees the same positions. Apart from ME, which looks at whole rows, only compat
switches ask for any but the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from expunge.core.errors import UserError
from expunge.lm.labels import Batch, Side

PLACES = {
    "labels": "the positions that predict a label",
    "tokens": "the positions that predict a token, the prompt's included, padding not",
    "predictors": "all positions that have a successor, prompt and padding included",
    "all": "all positions, prompt and padding included, and the last, which predicts nothing",
    "own": "the positions of the labels themselves, not shifted",
}
IGNORED = -100
"""The label at a position that predicts no label, as the field writes it."""

Place = tuple[str, str, int]
"""A side, one of `PLACES`, and how many leading labels are skipped: what a token mean is over."""


def at_places(sides: Mapping[str, Side], places: str) -> Batch:
    """The sides of a batch, rewritten so that their labels are at other positions.

    Args:
        sides: as collated.
        places: one of `PLACES`.

    Raises:
        UserError: there are no such places.
    """
    if places not in PLACES:
        raise UserError(f"there are no places {places!r}", f"choose one of {', '.join(PLACES)}")
    return (
        dict(sides)
        if places == "labels"
        else {name: _rewritten(side, places) for name, side in sides.items()}
    )


def count_labels(side: Side, skip: int = 0) -> int:
    """How many labels of a side that is laid out count; nothing predicts one at position 0."""
    return side["host"].count(skip)


def special(places: Iterable[Place]) -> tuple[Place, ...]:
    """Those of the places that are not simply all labels, in an order that all ranks share."""
    return tuple(sorted({place for place in places if place[0] and place[1:] != ("labels", 0)}))


def _rewritten(side: Side, places: str) -> Side:
    ids_BT, mask_BT = side["input_ids"], side["label_mask"]
    # The labels as the field's code sees them.
    shown_BT = ids_BT.masked_fill(~mask_BT, IGNORED)
    attention_BT = side["attention_mask"]
    if places == "tokens":
        real_BT = attention_BT.bool()
        # Whatever the side of the padding, a row's first token has no predecessor that could predict it.
        return {**side, "label_mask": real_BT & torch.nn.functional.pad(real_BT[:, :-1], (1, 0))}
    if places == "predictors":
        mask_BT = torch.ones_like(mask_BT)
    else:
        # A column that nothing attends to: it stands after the last position and lets that one predict
        # something.
        ids_BT, attention_BT, mask_BT = (
            torch.nn.functional.pad(value, (0, 1)) for value in (ids_BT, attention_BT, mask_BT)
        )
        shown_BT = torch.nn.functional.pad(shown_BT, (0, 1), value=IGNORED)
        mask_BT = torch.ones_like(mask_BT) if places == "all" else mask_BT.roll(1, -1)
    # The field gives no position ids, so that positions are counted through padding on the right.
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    rewritten: Side = {
        **side,
        "input_ids": ids_BT,
        "attention_mask": attention_BT,
        "label_mask": mask_BT,
        "position_ids": positions_BT,
    }
    return rewritten if places == "own" else {**rewritten, "shown": shown_BT}
