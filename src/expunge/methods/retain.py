"""Retain terms: losses that preserve the rest of the model's knowledge."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from expunge.lm import divergence
from expunge.methods.base import loss
from expunge.methods.representation import Ratio, counted_tokens, squared_distance

Form = Literal["kl", "reverse_cross_entropy"]
"""KL(ref || theta), or what SOUL's code computes and calls KL: -sum_v p_theta(v) log p_ref(v)."""


def distance(ref_logits_BNV: Tensor, logits_BNV: Tensor, form: Form) -> Tensor:
    """The distance of a model's next-token distributions from the reference's, [B, N], nats."""
    if form == "kl":
        return divergence.kl(ref_logits_BNV, logits_BNV)
    return divergence.cross_entropy(logits_BNV, ref_logits_BNV)


@loss(
    kind="token",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/f7656c77bbccb22215bea58199aee734ad7d641f/src/trainer/unlearn/grad_diff.py",
)
def nll(retain_logp_BN: Tensor) -> Tensor:
    """Cross entropy of the retain labels: -log p(y_t).

    L_r = CE(r), averaged over the label tokens of the whole step.

    Args:
        retain_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token, >= 0.
    """
    return -retain_logp_BN


@loss(
    kind="token",
    places="mask",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def kl(
    retain_logits_BNV: Tensor,
    ref_retain_logits_BNV: Tensor,
    *,
    form: Form = "kl",
    mask: Literal["labels", "all"] = "labels",
) -> Tensor:
    """KL(ref || theta) of the next-token distributions at the retain labels.

    L_r = mean over label tokens of sum_v p_ref(v) (log p_ref(v) - log p_theta(v)).

    Deviation from the field's code, on purpose: it sums over every position, prompt and padding included, and
    divides by B * T, so its value depends on the amount of padding. Here only label tokens count;
    `mask="all"` restores the field's way. SOUL's code computes -sum p_theta log p_ref there: the reversed
    divergence without the entropy. Its minimum is not the reference but a theta that puts all its mass on the
    reference's likeliest token. `form="reverse_cross_entropy"` and `mask="all"` restore it (`compat=soul`).

    Args:
        retain_logits_BNV: [B, N, V] logits of the model.
        ref_retain_logits_BNV: [B, N, V] logits of the model before unlearning.
        form: the distance between the two distributions.
        mask: what counts: the labels, or all positions, prompt and padding included.

    Returns:
        [B, N] per label token, >= 0 up to rounding, 0 if both models agree.
    """
    return distance(ref_retain_logits_BNV, retain_logits_BNV, form)


@loss(
    kind="sequence",
    paper="arXiv:2403.03218",
    code="https://github.com/locuslab/open-unlearning/blob/7fa0b552e59bd50aef00529b43546865c6f30c7d/src/trainer/unlearn/rmu.py",
)
def embed_diff(
    retain_hidden_BTD: Tensor,
    ref_retain_hidden_BTD: Tensor,
    retain_mask_BT: Tensor,
    retain_attention_mask_BT: Tensor,
    *,
    module_regex: str | None = None,
    ratio: Ratio = "sequence",
) -> Tensor:
    """EMBED_DIFF, the retain term of RMU: the squared distance of a module's output from the reference's.

    L_r = mean over sequences of mean over tokens of ||h_theta - h_ref||^2 / d.

    Deviation from the field's code, on purpose: it divides the [B] sums by counts of shape [B, 1] and
    averages the [B, B] quotients. Here each sequence's sum is divided by its own count. `ratio="batch"`
    restores the field's way.

    Args:
        retain_hidden_BTD: [B, T, D] output of the module in the model.
        ref_retain_hidden_BTD: [B, T, D] in the model before unlearning.
        retain_mask_BT: [B, T] True = a label, at its own position.
        retain_attention_mask_BT: [B, T] True = a token, not padding.
        module_regex: matches the whole name of the module whose output is read; null = the method's module.
        ratio: the divisor of a sequence's sum.

    Returns:
        [B] per sequence, >= 0, 0 if both models agree.
    """
    counted_BT = counted_tokens(retain_mask_BT, retain_attention_mask_BT)
    return squared_distance(retain_hidden_BTD, ref_retain_hidden_BTD, counted_BT, ratio)
