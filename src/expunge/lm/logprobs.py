"""Token and sequence log-probabilities in float32, whatever dtype the logits have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def token_logp(logits_BNV: Tensor, label_BN: Tensor) -> Tensor:
    """Natural log-probability of each label: logits[label] - logsumexp(logits), in float32 (float64 is kept).

    Args:
        logits_BNV: [B, N, V] logits at the positions that predict the labels; any float dtype.
        label_BN: [B, N] int64 label tokens.

    Returns:
        [B, N] log-probabilities, float32 (float64 for float64 logits). Padded places hold whatever label 0 gives: mask them.
    """
    logits_BNV = as_float32(logits_BNV)
    return logits_BNV.gather(-1, label_BN.unsqueeze(-1)).squeeze(-1) - logits_BNV.logsumexp(-1)


def masked(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """`value_BN` where the mask counts, exactly 0 elsewhere, even where it is not finite."""
    return torch.where(mask_BN, value_BN, torch.zeros_like(value_BN))


def masked_sum(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Sum over the last dimension of what the mask counts; masked places contribute exactly 0, even where they are not finite."""
    return masked(value_BN, mask_BN).sum(-1)


def masked_mean(value_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over the last dimension of what the mask counts; 0 where it counts nothing."""
    return masked_sum(value_BN, mask_BN) / mask_BN.sum(-1).clamp(min=1)


def sequence_logp(logp_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Log-probability of each row's labels: the sum over its label tokens, [B]."""
    return masked_sum(logp_BN, mask_BN)


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
    """All that the metrics ever ask of the vocabulary, from one look at it, `chunk` label positions at a time.

    Args:
        logits_BNV: [B, N, V] logits at label positions.
        label_BN: [B, N] int64 labels.
        chunk: label positions held in float32 at once.

    Returns:
        Log-probability, greedy hit, mean and variance of log p under p.
    """
    parts: list[tuple[Tensor, ...]] = []
    for logits_BnV, label_Bn in zip(torch.split(logits_BNV, chunk, 1), torch.split(label_BN, chunk, 1), strict=True):
        logp_BnV = as_float32(logits_BnV).log_softmax(-1)
        p_BnV = logp_BnV.exp()
        # 0 * -inf would be NaN where a logit is -inf; such a token has no mass and adds nothing.
        finite_BnV = torch.where(p_BnV > 0, logp_BnV, torch.zeros_like(logp_BnV))
        mu_Bn = (p_BnV * finite_BnV).sum(-1)
        # About the mean, not E[x^2] - E[x]^2: that difference cancels in float32 and can fall below 0.
        var_Bn = (p_BnV * (finite_BnV - mu_Bn.unsqueeze(-1)).square()).sum(-1)
        parts.append((logp_BnV.gather(-1, label_Bn.unsqueeze(-1)).squeeze(-1), logits_BnV.argmax(-1) == label_Bn, mu_Bn, var_Bn))
    return TokenStatistics(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))


def as_float32(value: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
