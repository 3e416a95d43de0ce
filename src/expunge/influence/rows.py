"""The loss of each row, and rows in batches: what every algorithm of a per-example quantity shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.core.errors import Fault, UserError
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.data.rows import SHOWN
from expunge.lm.labels import LabelIndex, Side, label_index, on_device
from expunge.lm.logprobs import masked_sum
from expunge.lm.packing import token_budgeted_batches

Reduction = Literal["token_mean", "token_sum"]
"""How the losses of a row's label tokens become the loss of the row."""


class RowBatch(NamedTuple):
    """A few rows.

    Attributes:
        numbers: their positions in the sequence they are from.
        side: their tensors, on the device.
    """

    numbers: list[int]
    side: Side


def batches_of(
    encoded: Sequence[Encoded], max_tokens: int, where: torch.device, max_rows: int | None = None
) -> Iterator[RowBatch]:
    """The rows in length-sorted batches of at most `max_tokens` padded tokens; longest first."""
    for numbers in token_budgeted_batches([len(row) for row in encoded], max_tokens, max_rows):
        # Any token pads: the attention mask comes from the lengths.
        yield RowBatch(numbers, on_device(collate([encoded[number] for number in numbers], pad_id=0), where))


def index_of(side: Side) -> LabelIndex:
    """Where the labels of a batch are, and what is to be predicted there."""
    return label_index(side.get("targets", side["input_ids"]), side["label_mask"])


def count_labels(row: Encoded) -> int:
    """The label tokens of a row; one at position 0 does not count, since nothing predicts it."""
    return sum(row.label_mask[1:])


def check_rows(encoded: Sequence[Encoded]) -> None:
    """Refuse rows that have no loss, or that cannot be told apart.

    Raises:
        UserError: no row at all, rows without a label token, or two rows with one id.
    """
    if not encoded:
        raise UserError("there is no row to score", "name a data set under data.forget")
    bare = [row for row in encoded if count_labels(row) == 0]
    if bare:
        told = [
            Fault(f"row {row.row} ({row.row_id}) has no label token, so it has no loss")
            for row in bare[:SHOWN]
        ]
        rest = [Fault(f"and {len(bare) - SHOWN} more rows like that")] if len(bare) > SHOWN else []
        raise UserError.of([*told, *rest])
    if len({row.row_id for row in encoded}) < len(encoded):
        raise UserError(
            "several examples have the same row id",
            "give each row one answer; repeats of a row are told apart by #k",
        )


def reduced(value_BN: Tensor, mask_BN: Tensor, reduction: str) -> Tensor:
    """[B] of what stands at label positions [B, N]: its mean over the row's label tokens, or its sum."""
    total_B = masked_sum(value_BN, mask_BN)
    return total_B if reduction == "token_sum" else total_B / mask_BN.sum(-1)
