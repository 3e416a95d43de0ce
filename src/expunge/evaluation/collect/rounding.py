"""Statistics of label tokens, rounded as the field's code rounds them on a CPU.

For a nearly certain token, the float32 value of log p depends on the order in which the vocabulary is summed.
The field's code computes cross entropies over logits in the layout [B, V, T]. A CPU then sums the vocabulary
term by term, small terms after large ones, and loses about 2e-6 nats per token on a memorised answer with a
vocabulary of 4096, more with a larger one. All other statistics come from `log_softmax`. On other devices the
layout makes no difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from expunge.lm.logprobs import token_statistics

POSITIONS_AT_ONCE = {"cpu": 32}
"""Label positions whose vocabulary is in float32 at once, by device; on a CPU they fit into its cache."""

POSITIONS = 1024
"""The same for any other device."""


class Rounded(NamedTuple):
    """The fields of `TokenStatistics`, as the attacks read them; `nll_BN`, the cross entropy of losses."""

    logp_BN: Tensor
    hit_BN: Tensor
    mu_BN: Tensor
    var_BN: Tensor
    nll_BN: Tensor


def rounded_statistics(logits_BNV: Tensor, label_BN: Tensor, as_published: bool = True) -> Rounded:
    """Statistics of each label token, a few positions' vocabulary at a time.

    Args:
        logits_BNV: [B, N, V] logits at label positions.
        label_BN: [B, N] labels.
        as_published: for float32 logits on a CPU, round as the field's code does; no effect elsewhere.
    """
    at_once = POSITIONS_AT_ONCE.get(logits_BNV.device.type, POSITIONS)
    statistics = token_statistics(logits_BNV, label_BN, at_once)
    if not as_published or logits_BNV.device.type != "cpu" or logits_BNV.dtype != torch.float32:
        return Rounded(*statistics, -statistics.logp_BN)
    pieces = zip(
        torch.split(logits_BNV.flatten(0, 1), at_once), torch.split(label_BN.flatten(), at_once), strict=True
    )
    nll_M = torch.cat([_in_order(logits_MV, label_M) for logits_MV, label_M in pieces])
    return Rounded(*statistics, nll_M.view(label_BN.shape))


def _in_order(logits_MV: Tensor, label_M: Tensor) -> Tensor:
    """[M] cross entropies; the vocabulary is summed term by term."""
    # torch turns a single column into a row and sums it in another order: give it two columns.
    twice = 1 + (len(label_M) == 1)
    columns_1VM = logits_MV.repeat(twice, 1).T.contiguous().unsqueeze(0)
    return functional.cross_entropy(columns_1VM, label_M.repeat(twice).unsqueeze(0), reduction="none")[
        0, : len(label_M)
    ]
