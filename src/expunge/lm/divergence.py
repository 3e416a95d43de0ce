"""Divergences between next-token distributions, per label position."""

from __future__ import annotations

from torch import Tensor

from expunge.lm.logprobs import as_float32


def kl(logits_p_BNV: Tensor, logits_q_BNV: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), per position, in float32.

    Args:
        logits_p_BNV: [B, N, V] logits of p, the distribution that weighs.
        logits_q_BNV: [B, N, V] logits of q.

    Returns:
        [B, N], in nats, >= 0 up to rounding, 0 where both are equal.
    """
    logp_BNV = as_float32(logits_p_BNV).log_softmax(-1)
    logq_BNV = as_float32(logits_q_BNV).log_softmax(-1)
    return (logp_BNV.exp() * (logp_BNV - logq_BNV)).sum(-1)
