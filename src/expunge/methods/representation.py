"""What losses on hidden states share: which tokens count, and distances between states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.lm.logprobs import as_float32, masked_mean, masked_sum

Ratio = Literal["sequence", "batch"]
"""What the sum over a sequence's tokens is divided by: their number, or the harmonic mean of the numbers of the batch."""


def counted_tokens(mask_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """The tokens whose hidden states count: the labels where a row has a prompt, all tokens where it is plain text.

    A row is plain text if all its tokens but the first are labels; then the first counts as well.

    Args:
        mask_BT: [B, T] True = a label, at its own position.
        attention_mask_BT: [B, T] True = a token, no padding.

    Returns:
        [B, T] bool.
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
        ratio: "sequence" = each sum is divided by its own count; "batch" = by every count of the batch in
            turn, and averaged, which is what dividing [B] by [B, 1] and taking the mean of the [B, B]
            quotients comes to.

    Returns:
        [B], >= 0; 0 where nothing counts.
    """
    difference_BTD = torch.where(
        counted_BT.unsqueeze(-1), as_float32(hidden_BTD) - as_float32(target_BTD), 0.0
    )
    square_BT = difference_BTD.square().mean(-1)
    if ratio == "sequence":
        return masked_mean(square_BT, counted_BT)
    return masked_sum(square_BT, counted_BT) * (1.0 / counted_BT.sum(-1).clamp(min=1)).mean()
