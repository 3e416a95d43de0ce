"""Shared by all algorithms for per-example quantities: batches of rows, and the loss of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.core.errors import Fault, UserError
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.data.rows import first_faults
from expunge.lm.labels import LabelIndex, Side, label_index, on_device
from expunge.lm.logprobs import masked_sum
from expunge.lm.packing import token_budgeted_batches

Reduction = Literal["token_mean", "token_sum"]
"""How the losses of a row's label tokens become the loss of the row."""


class RowBatch(NamedTuple):
    """The positions of some rows in their sequence, and their tensors on the device."""

    numbers: list[int]
    side: Side


def batches_of(
    encoded: Sequence[Encoded], max_tokens: int, where: torch.device, max_rows: int | None = None
) -> Iterator[RowBatch]:
    """Length-sorted batches of at most `max_tokens` padded tokens, longest rows first."""
    for numbers in token_budgeted_batches([len(row) for row in encoded], max_tokens, max_rows):
        # Any pad token works, because the attention mask comes from the lengths.
        yield RowBatch(numbers, on_device(collate([encoded[number] for number in numbers], pad_id=0), where))


def index_of(side: Side) -> LabelIndex:
    """The label positions of a batch, and the tokens to predict there."""
    return label_index(side.get("targets", side["input_ids"]), side["label_mask"])


def count_labels(row: Encoded) -> int:
    """Number of label tokens of a row, without position 0, which nothing predicts."""
    return sum(row.label_mask[1:])


def check_rows(encoded: Sequence[Encoded]) -> None:
    """Refuse rows without a loss, and rows with equal ids.

    Raises:
        UserError: there is no row, a row has no label token, or two rows have the same id.
    """
    if not encoded:
        raise UserError("there is no row to score", "name a data set under data.forget")
    bare = [row for row in encoded if count_labels(row) == 0]
    if bare:
        raise UserError.of(
            first_faults(
                [Fault(f"row {row.row} ({row.row_id}) has no label token, so it has no loss") for row in bare]
            )
        )
    if len({row.row_id for row in encoded}) < len(encoded):
        raise UserError(
            "several examples have the same row id",
            "give each row one answer; repeats of a row get different ids (#k)",
        )


def reduced(value_BN: Tensor, mask_BN: Tensor, reduction: str) -> Tensor:
    """[B] mean (or sum, for token_sum) of the values [B, N] over the label tokens of each row."""
    total_B = masked_sum(value_BN, mask_BN)
    return total_B if reduction == "token_sum" else total_B / mask_BN.sum(-1)
