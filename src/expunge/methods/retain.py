"""Retain terms: what keeps the rest of the model's knowledge in place. They are losses like any other."""

from __future__ import annotations

from torch import Tensor

from expunge.lm import divergence
from expunge.lm.logprobs import masked
from expunge.methods.base import loss

HANDLERS = {"nll": "expunge.methods.retain:nll", "kl": "expunge.methods.retain:kl"}
"""Short names of the retain terms, as `@loss(retain=...)` and the field's `retain_loss_type` say them."""


@loss(
    kind="token",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/f7656c77bbccb22215bea58199aee734ad7d641f/src/trainer/unlearn/grad_diff.py",
)
def nll(retain_logp_BN: Tensor, retain_mask_BN: Tensor) -> Tensor:
    """Cross entropy of the retain labels: -log p(y_t).

    L_r = CE(r), averaged over the label tokens of the whole step.

    Args:
        retain_logp_BN: [B, N] log-probabilities of the labels, nats.
        retain_mask_BN: [B, N] True = a label.

    Returns:
        [B, N] per label token, >= 0, 0 where masked.
    """
    return masked(-retain_logp_BN, retain_mask_BN)


@loss(
    kind="token",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def kl(retain_logits_BNV: Tensor, ref_retain_logits_BNV: Tensor, retain_mask_BN: Tensor) -> Tensor:
    """KL(ref || theta) of the next-token distributions at the retain labels.

    L_r = mean over label tokens of sum_v p_ref(v) (log p_ref(v) - log p_theta(v)).

    Deviation from the field's code, on purpose: that sums over every position, prompt and padding included, and divides by B * T, so
    that its value depends on how much padding a batch has. Here only label tokens count.

    Args:
        retain_logits_BNV: [B, N, V] logits of the model.
        ref_retain_logits_BNV: [B, N, V] logits of the model before unlearning.
        retain_mask_BN: [B, N] True = a label.

    Returns:
        [B, N] per label token, >= 0 up to rounding, 0 where masked and where both models agree.
    """
    return masked(divergence.kl(ref_retain_logits_BNV, retain_logits_BNV), retain_mask_BN)
