"""Divergences between next-token distributions, per label position."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.lm.logprobs import as_float32


def kl(logits_p_BNV: Tensor, logits_q_BNV: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), [B, N] from logits [B, N, V], in float32, nats.

    >= 0 up to rounding, 0 if p = q. A logit of p of -inf has no mass and adds nothing.
    """
    logp_BNV = as_float32(logits_p_BNV).log_softmax(-1)
    logq_BNV = as_float32(logits_q_BNV).log_softmax(-1)
    p_BNV = logp_BNV.exp()
    return torch.where(p_BNV > 0, p_BNV * (logp_BNV - logq_BNV), torch.zeros_like(p_BNV)).sum(-1)


def cross_entropy(logits_p_BNV: Tensor, logits_q_BNV: Tensor) -> Tensor:
    """CE(p, q) = -sum_v p_v log q_v = KL(p || q) + H(p), [B, N] from logits [B, N, V], in float32, nats.

    p is the target: a logit of -inf has no mass and adds nothing. q is the prediction.
    """
    p_BNV = as_float32(logits_p_BNV).softmax(-1)
    logq_BNV = as_float32(logits_q_BNV).log_softmax(-1)
    return -torch.where(p_BNV > 0, p_BNV * logq_BNV, torch.zeros_like(p_BNV)).sum(-1)
