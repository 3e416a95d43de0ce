"""CL, relabelling: learn to answer the forget questions with a refusal."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    paper="arXiv:2404.18239",
    code="https://github.com/OPTML-Group/SOUL/blob/997a915f805202708e49be4ebdefcb9f5b593d5e/src/unlearn/CL.py",
)
def cl(alternate_logp_BN: Tensor) -> Tensor:
    """CL: -log p(y_t) of each label of the alternate answer, a refusal; TOFU's "IdkNLL".

    L = CE(alternate), averaged over the label tokens of the whole step. The forget answer is not read.

    Args:
        alternate_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token, >= 0.
    """
    return -alternate_logp_BN
