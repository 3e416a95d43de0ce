"""What losses on hidden states share: which tokens count, and distances between states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.lm.logprobs import as_float32, masked_mean, masked_sum

Ratio = Literal["sequence", "batch"]
"""The divisor of a sum over a sequence's tokens: their number, or the harmonic mean over the batch."""


def counted_tokens(mask_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """[B, T] the tokens whose states count: the labels of a row with a prompt, all tokens of plain text.

    A row is plain text if all its tokens except the first are labels; then the first counts as well.
    `mask_BT` is True at a label, at its own position.
    """
    text_B1 = (attention_mask_BT & ~mask_BT).sum(-1, keepdim=True) == 1
    return torch.where(text_B1, attention_mask_BT, mask_BT)


def squared_distance(
    hidden_BTD: Tensor, target_BTD: Tensor, counted_BT: Tensor, ratio: Ratio = "sequence"
) -> Tensor:
    """Mean over the counted tokens of ||h - target||^2 / D, in float32.

    Args:
        hidden_BTD: [B, T, D] states.
        target_BTD: broadcast to [B, T, D].
        counted_BT: [B, T] True = counts.
        ratio: "sequence" = each sum is divided by its own count; "batch" = each sum is divided by every count
            of the batch, and the quotients are averaged. This is what the field's code does when it divides
            [B] by [B, 1] and takes the mean of the [B, B] quotients.

    Returns:
        [B], >= 0; 0 if no token counts.
    """
    difference_BTD = torch.where(
        counted_BT.unsqueeze(-1), as_float32(hidden_BTD) - as_float32(target_BTD), 0.0
    )
    square_BT = difference_BTD.square().mean(-1)
    if ratio == "sequence":
        return masked_mean(square_BT, counted_BT)
    return masked_sum(square_BT, counted_BT) * (1.0 / counted_BT.sum(-1).clamp(min=1)).mean()
