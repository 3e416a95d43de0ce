"""Gradient ascent: raise the cross entropy of the forget set."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    paper="arXiv:2401.06121",
    code="https://github.com/locuslab/open-unlearning/blob/a50f1e2ade0bed142d2fe62d715c6aaf8b911756/src/trainer/unlearn/grad_ascent.py",
)
def grad_ascent(forget_logp_BN: Tensor) -> Tensor:
    """GradAscent: log p(y_t), that is minus the negative log-likelihood, of each forget label.

    L = -CE(f) = mean over label tokens of log p_theta(y_t | y_<t). Unbounded below: only the number of steps
    limits it.

    Source: the baseline "gradient ascent" of TOFU (arXiv:2401.06121). Deviation: the field averages each
    micro-batch over its own tokens, then averages the micro-batches; here the mean is over the label tokens
    of the whole step.

    Args:
        forget_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token.
    """
    return forget_logp_BN
