"""Label positions: where the loss counts, and which hidden state predicts each label.

The output at position t predicts the token at t + 1. So the output at p - 1 predicts a label token at
position p. A label at position 0 has no predictor and cannot be scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict, cast

import torch
from torch import Tensor


class Labels(TypedDict):
    """Positions of the M labels of a side, row after row; all are tensors, so a device move reaches them.

    Keys:
        row_M: [M] int64, the row of each label.
        position_M: [M] int64, the position whose output predicts it.
        slot_M: [M] int64, its index in the flattened padded view [B, N]; N = the largest number of labels in
            a row, at least 1.
        label_M: [M] int64, the token to predict.
        shown_M: [M] int64, the label that the loss sees; absent if it equals the token to predict.
        mask_BN: [B, N] bool, True = a label. Gives the shape and the filled places of the padded view.
    """

    row_M: Tensor
    position_M: Tensor
    slot_M: Tensor
    label_M: Tensor
    shown_M: NotRequired[Tensor]
    mask_BN: Tensor


@dataclass(frozen=True)
class HostLabels:
    """Facts about a side's labels, kept on the CPU so that reading them never waits for the device.

    Attributes:
        row_R: [R] int64, the rows that count, as indices in the view, in batch order.
        count_R: [R] int64, the number of labels of each of these rows.
        label_M: [M] int64, the tokens to predict, row after row.
    """

    row_R: Tensor
    count_R: Tensor
    label_M: Tensor

    def count(self, skip: int = 0) -> int:
        """Number of labels that count, without the first `skip` labels of each row."""
        return int((self.count_R - skip).clamp(min=0).sum())


class _Needed(TypedDict):
    input_ids: Tensor
    attention_mask: Tensor
    label_mask: Tensor


class Side(_Needed, total=False):
    """One side of a batch, as tensors: a plain dict at run time, so a device move reaches it.

    Keys:
        input_ids: [B, T] int64 tokens.
        attention_mask: [B, T] int64, 1 = a real token. It comes from the encoding, never from comparing ids
            with the pad token.
        label_mask: [B, T] bool, True = this token is a label (counted). Never True at position 0.
        row: [B] int64, index of the row in its view; the key to cached reference values.
        position_ids: [B, T] int64; absent if positions are counted from the first real token.
        targets: [B, T] int64, the tokens to predict at label positions; absent if they equal `input_ids`.
        shown: [B, T] int64, the labels that the loss sees; absent if they equal the tokens to predict.
        labels: label positions of a training batch, computed on the CPU before any forward pass.
        host: the facts about the labels that stay on the CPU.
    """

    row: Tensor
    position_ids: Tensor
    targets: Tensor
    shown: Tensor
    labels: Labels
    host: HostLabels


def on_device(side: Side, where: torch.device) -> Side:
    """Move the tensors of a side to a device."""
    return cast(Side, {name: tensor.to(where) for name, tensor in cast(dict[str, Tensor], side).items()})


def laid_out(side: Side, counted_B: Tensor | None = None) -> Side:
    """Add `labels` and `host` to a side. Uses no device time if the tensors are on the CPU.

    Args:
        side: as collated.
        counted_B: [B] bool; a row that does not count keeps its tokens and loses its labels. None = all rows
            count.
    """
    mask_BT = side["label_mask"].bool()
    if counted_B is None:
        counted_B = torch.ones(len(mask_BT), dtype=torch.bool, device=mask_BT.device)
    mask_BT = mask_BT & counted_B.unsqueeze(-1)
    count_B = mask_BT[:, 1:].sum(-1)
    row_M, position_M = mask_BT[:, 1:].nonzero(as_tuple=True)
    size = max(1, int(count_B.max())) if len(count_B) else 1
    mask_BN = torch.arange(size, device=count_B.device) < count_B.unsqueeze(-1)
    label_M = side.get("targets", side["input_ids"])[row_M, position_M + 1]
    labels: Labels = {
        "row_M": row_M,
        "position_M": position_M,
        "slot_M": mask_BN.flatten().nonzero().squeeze(-1),
        "label_M": label_M,
        "mask_BN": mask_BN,
    }
    if "shown" in side:
        labels["shown_M"] = side["shown"][row_M, position_M + 1]
    rows_B = side.get("row", torch.full_like(count_B, -1))
    host = HostLabels(*(value.cpu() for value in (rows_B[counted_B], count_B[counted_B], label_M)))
    return {**side, "label_mask": mask_BT, "labels": labels, "host": host}


def padded(value_M: Tensor, labels: Labels) -> Tensor:
    """Lay values at labels [M, ...] out as [B, N, ...]; places without a label are 0 and have no gradient."""
    mask_BN = labels["mask_BN"]
    empty = value_M.new_zeros((mask_BN.numel(), *value_M.shape[1:]))
    filled = empty.index_copy(0, labels["slot_M"].to(value_M.device), value_M)
    return filled.view(*mask_BN.shape, *value_M.shape[1:])


Batch = dict[str, Side]
"""Sides by name: `forget`, `retain`, `alternate`. Only the sides that the objective reads are present."""


class LabelIndex(NamedTuple):
    """Positions of the labels of a batch, padded on the right to the row with the most labels.

    Attributes:
        predictor_BN: [B, N] int64, position whose output predicts the n-th label; 0 where padded.
        label_BN: [B, N] int64, the label tokens; 0 where padded.
        mask_BN: [B, N] bool, True = a label.
    """

    predictor_BN: Tensor
    label_BN: Tensor
    mask_BN: Tensor


def label_index(input_ids_BT: Tensor, label_mask_BT: Tensor) -> LabelIndex:
    """Compact the labels of a batch into [B, N] in order; N = largest number of labels in a row (at least 1).

    A label at position 0 is ignored, since nothing predicts it.
    """
    counted_BS = label_mask_BT[:, 1:].bool()
    size = max(1, int(counted_BS.sum(-1).max().item())) if counted_BS.numel() else 1
    if counted_BS.shape[1] == 0:
        zero_BN = torch.zeros(label_mask_BT.shape[0], 1, dtype=torch.long, device=input_ids_BT.device)
        return LabelIndex(zero_BN, zero_BN, zero_BN.bool())
    # A stable sort of "not counted" puts the counted positions first and keeps their order.
    order_BN = torch.argsort((~counted_BS).to(torch.int8), dim=-1, stable=True)[:, :size]
    mask_BN = counted_BS.gather(1, order_BN)
    predictor_BN = order_BN.masked_fill(~mask_BN, 0)
    label_BN = input_ids_BT.gather(1, order_BN + 1).masked_fill(~mask_BN, 0)
    return LabelIndex(predictor_BN, label_BN, mask_BN)


def without_first(mask_BN: Tensor, count: int) -> Tensor:
    """The mask without the first `count` True places of each row."""
    return mask_BN & (mask_BN.cumsum(-1) > count)
