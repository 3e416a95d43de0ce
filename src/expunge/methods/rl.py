"""RL, random labels: learn to answer the forget questions with answers to other questions."""

from __future__ import annotations

from torch import Tensor

from expunge.methods.base import loss


@loss(
    kind="token",
    paper="arXiv:2404.18239",
    code="https://github.com/OPTML-Group/SOUL/blob/997a915f805202708e49be4ebdefcb9f5b593d5e/src/unlearn/RL.py",
)
def rl(alternate_logp_BN: Tensor) -> Tensor:
    """RL: -log p(y_t) of each label of the alternate answer, which is the answer of a random retain row.

    L = CE(alternate), averaged over the label tokens of the whole step. Which answers the alternates are is
    the data's part.

    Deviation from SOUL's code, on purpose: that pastes the label ids of another row over the forget row
    position by position, so that prompt and answer of unlike lengths overlap; here a whole row is encoded
    from the question and the other answer.

    Args:
        alternate_logp_BN: [B, N] log-probabilities of the labels, nats.

    Returns:
        [B, N] per label token, >= 0.
    """
    return -alternate_logp_BN
