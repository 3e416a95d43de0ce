"""SatImp: gradient ascent, weighted by the saturation and importance of each token."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    alpha=0.1,
    retain="nll",
    paper="arXiv:2505.11953",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def satimp(forget_logp_BN: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """SatImp: p_t^beta1 (1 - p_t)^beta2 log p_t; the factors before log p_t have no gradient.

    L = -mean over label tokens of p_t^beta1 (1 - p_t)^beta2 nll_t. With beta1 = beta2 = 0 it is gradient
    ascent. The weights gamma 1 and alpha 0.1 are the authors'; open-unlearning's configuration has gamma 0.1
    and alpha 1. No reference model is read.

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.
        beta1: exponent of the saturation weight, which is small for tokens that are already forgotten.
        beta2: exponent of the importance weight, which is small for tokens that are nearly certain.

    Returns:
        [B, N] per label token, <= 0.
    """
    p_BN = forget_logp_BN.detach().exp()
    return p_BN**beta1 * (1 - p_BN) ** beta2 * forget_logp_BN
