"""Gradient difference: ascent on the forget set, descent on the retain set."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    retain="nll",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/f7656c77bbccb22215bea58199aee734ad7d641f/src/trainer/unlearn/grad_diff.py",
)
def grad_diff(forget_logp_BN: Tensor) -> Tensor:
    """The forget term of GradDiff: log p(y_t) of each forget label, as in gradient ascent.

    L = gamma * (-CE(f)) + alpha * CE(r), where each CE is the mean over the label tokens of its side. The
    second term is the retain term; its default is `nll`.

    Source: "gradient difference" of TOFU (arXiv:2401.06121; first in arXiv:2203.12817). Deviation: means are
    over the label tokens of the whole step, not means of micro-batch means.

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token.
    """
    return forget_logp_BN
