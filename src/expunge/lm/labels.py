"""Label positions: where the loss counts, and which hidden state predicts each label.

The output at position t predicts the token at t + 1. A label token at position p is therefore predicted from
p - 1; a label at position 0 has no predictor and cannot be scored.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor


class _Needed(TypedDict):
    input_ids: Tensor
    attention_mask: Tensor
    label_mask: Tensor


class Side(_Needed, total=False):
    """One side of a batch, as tensors: a plain dict at run time, so that device moves reach it.

    Keys:
        input_ids: [B, T] int64 tokens.
        attention_mask: [B, T] int64, 1 = a real token; from the encoding, never from comparing ids with the
            pad token.
        label_mask: [B, T] bool, True = this token is a label (counted). Never True at position 0.
        row: [B] int64, index of the row in its view; the key to cached reference values.
        position_ids: [B, T] int64, where they are not to be counted from the first real token.
        targets: [B, T] int64, the tokens to predict at label positions, where they are not those of
            `input_ids`.
    """

    row: Tensor
    position_ids: Tensor
    targets: Tensor


def on_device(side: Side, where: torch.device) -> Side:
    """A side with its tensors on a device."""
    return cast(Side, {name: tensor.to(where) for name, tensor in cast(dict[str, Tensor], side).items()})


Batch = dict[str, Side]
"""Sides by name: `forget`, `retain`, `alternate`; only those that the objective reads."""


class LabelIndex(NamedTuple):
    """Where the labels of a batch are, padded on the right to the longest row.

    Attributes:
        predictor_BN: [B, N] int64, position whose output predicts the n-th label; 0 where padded.
        label_BN: [B, N] int64, the label tokens; 0 where padded.
        mask_BN: [B, N] bool, True = a label.
    """

    predictor_BN: Tensor
    label_BN: Tensor
    mask_BN: Tensor


def label_index(input_ids_BT: Tensor, label_mask_BT: Tensor) -> LabelIndex:
    """Compact the label positions of a batch into [B, N], N = the most labels in a row (at least 1).

    Args:
        input_ids_BT: [B, T] tokens.
        label_mask_BT: [B, T] bool; True = label. Position 0 is ignored, since nothing predicts it.

    Returns:
        Predictor positions, label tokens and mask, in the order of the sequence.
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
    """The mask without the first `count` places of each row that it counts."""
    return mask_BN & (mask_BN.cumsum(-1) > count)
