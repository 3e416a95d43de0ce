"""Log-probabilities of labels, rounded as published numbers are.

Of a token that is nearly certain, float32 leaves log p some 1e-7 to 2e-6 nats off, and by how much depends on how the vocabulary was
summed: a thousandth of a memorised answer's loss of .002. The field has torch compute cross entropies over logits laid out [B, V, T],
whose vocabulary a CPU adds up one after the other, and log-probabilities by `log_softmax`. On other devices the layout makes no
difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

POSITIONS_AT_ONCE = 32
"""What stays in a CPU's cache."""


class Rounded(NamedTuple):
    """Of each label, [B, N] float32.

    Attributes:
        logp_BN: log-probability, as the attacks read it.
        nll_BN: cross entropy, as the losses read it.
    """

    logp_BN: Tensor
    nll_BN: Tensor


def as_published(logits_BNV: Tensor, label_BN: Tensor, logp_BN: Tensor) -> Rounded:
    """The two computed as the field computes them for float32 logits on a CPU; `logp_BN` and its negative anywhere else.

    Args:
        logits_BNV: [B, N, V] logits at label positions.
        label_BN: [B, N] labels.
        logp_BN: [B, N] their log-probabilities.
    """
    if logits_BNV.device.type != "cpu" or logits_BNV.dtype != torch.float32:
        return Rounded(logp_BN, -logp_BN)
    logits = torch.split(logits_BNV.flatten(0, 1), POSITIONS_AT_ONCE)
    labels = torch.split(label_BN.flatten(), POSITIONS_AT_ONCE)
    pieces = [(_softmax(*piece), _in_order(*piece)) for piece in zip(logits, labels, strict=True)]
    return Rounded(*(torch.cat(column).view(label_BN.shape) for column in zip(*pieces, strict=True)))


def _softmax(logits_MV: Tensor, label_M: Tensor) -> Tensor:
    return logits_MV.log_softmax(-1).gather(-1, label_M.unsqueeze(-1)).squeeze(-1)


def _in_order(logits_MV: Tensor, label_M: Tensor) -> Tensor:
    # Of a single column torch would make a row again, and sum it otherwise: give it two.
    twice = 1 + (len(label_M) == 1)
    columns_1VM = logits_MV.repeat(twice, 1).T.contiguous().unsqueeze(0)
    return functional.cross_entropy(columns_1VM, label_M.repeat(twice).unsqueeze(0), reduction="none")[0, : len(label_M)]
