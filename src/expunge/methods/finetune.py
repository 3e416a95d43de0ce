"""Fine-tuning: the cross entropy of the rows to learn; in unlearning, of the retain set only."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    paper="arXiv:2404.18239",
    code="https://github.com/OPTML-Group/SOUL/blob/997a915f805202708e49be4ebdefcb9f5b593d5e/src/unlearn/FT.py",
)
def finetune(retain_logp_BN: Tensor) -> Tensor:
    """FT: -log p(y_t) of each retain label; the forget set is not read.

    L = CE(r). In a fine-tuning run the training rows are the side `retain`. Deviation from SOUL's code: the
    mean is over the label tokens of the whole step.

    Args:
        retain_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token, >= 0.
    """
    return -retain_logp_BN
