"""Token and sequence log-probabilities in float32, whatever dtype the logits have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def token_logp(logits_BNV: Tensor, label_BN: Tensor) -> Tensor:
    """[B, N] natural log-probability of each label: logits[label] - logsumexp(logits).

    In float32 (float64 is kept), whatever the dtype of the logits [B, N, V] at the positions that predict the
    labels. Padded places hold the value of label 0: mask them.
    """
    logits_BNV = as_float32(logits_BNV)
    return logits_BNV.gather(-1, label_BN.unsqueeze(-1)).squeeze(-1) - logits_BNV.logsumexp(-1)


def masked(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """`value_BN` where the mask is True, exactly 0 elsewhere, even if the masked value is not finite."""
    return torch.where(mask_BN, value_BN, torch.zeros_like(value_BN))


def masked_sum(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Sum over the last dimension where the mask is True; other values add exactly 0, even if not finite."""
    return masked(value_BN, mask_BN).sum(-1)


def masked_mean(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over the last dimension where the mask is True; 0 for a row without a True place."""
    return masked_sum(value_BN, mask_BN) / mask_BN.sum(-1).clamp(min=1)


class TokenStatistics(NamedTuple):
    """Per label token, all [B, N].

    Attributes:
        logp_BN: natural log-probability of the label, float32.
        hit_BN: whether the label is the argmax, bool.
        mu_BN: mean of log p over the vocabulary under p (minus the entropy), float32.
        var_BN: variance of log p over the vocabulary under p, float32.
    """

    logp_BN: Tensor
    hit_BN: Tensor
    mu_BN: Tensor
    var_BN: Tensor


def token_statistics(logits_BNV: Tensor, label_BN: Tensor, chunk: int = 128) -> TokenStatistics:
    """All vocabulary statistics that metrics need, in one pass, `chunk` label positions at a time.

    On a CPU a few dozen positions in float32 fit in the cache, which makes it several times faster.
    """
    rows = zip(
        torch.split(logits_BNV.flatten(0, 1), chunk), torch.split(label_BN.flatten(), chunk), strict=True
    )
    columns = zip(*(_statistics(logits_MV, label_M) for logits_MV, label_M in rows), strict=True)
    return TokenStatistics(*(torch.cat(column).view(label_BN.shape) for column in columns))


def _statistics(logits_MV: Tensor, label_M: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `TokenStatistics` for M label positions."""
    logits_MV = as_float32(logits_MV)
    label_M1 = label_M.unsqueeze(-1)
    hit_M = logits_MV.gather(-1, label_M1).squeeze(-1) == logits_MV.amax(-1)
    # Only argmax says which of several equal logits is the greedy one, and it is slow on a CPU.
    hit_M[hit_M.clone()] = logits_MV[hit_M].argmax(-1) == label_M[hit_M]
    # exp(-1e4) is 0 in every float type, so the clamp only prevents 0 * -inf, which is NaN.
    logp_MV = logits_MV.log_softmax(-1).clamp_(min=-1e4)
    p_MV = logp_MV.exp()
    mu_M = (p_MV * logp_MV).sum(-1)
    logp_M = logp_MV.gather(-1, label_M1).squeeze(-1)
    # Not E[x^2] - E[x]^2: that difference cancels in float32 and can fall below 0.
    var_M = logp_MV.sub_(mu_M.unsqueeze(-1)).square_().mul_(p_MV).sum(-1)
    return logp_M, hit_M, mu_M, var_M


def as_float32(value: Tensor) -> Tensor:
    """Cast half precision to float32; keep float32 and float64."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
