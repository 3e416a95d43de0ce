"""WGA, weighted gradient ascent: tokens that are already forgotten get a smaller weight."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    retain="nll",
    paper="arXiv:2502.19301",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def wga(forget_logp_BN: Tensor, *, beta: float = 1.0) -> Tensor:
    """WGA: p(y_t)^beta log p(y_t); the weight p(y_t)^beta has no gradient.

    L = -mean over label tokens of p_t^beta * nll_t. With beta = 0 it is gradient ascent. No reference model
    is read (the field's code copies the model and never uses the copy).

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.
        beta: how fast the weight decreases with the probability.

    Returns:
        [B, N] per label token, <= 0.
    """
    return (beta * forget_logp_BN).exp().detach() * forget_logp_BN
