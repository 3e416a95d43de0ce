"""Direct preference optimization (DPO): prefer an alternate answer; IdkDPO if the alternate is a refusal."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import loss


def reward_chosen(forget_B: Tensor, alternate_B: Tensor, *ref_B: Tensor, beta: float) -> Tensor:
    """The alternate answer's reward, beta log(p_theta / p_ref)."""
    return beta * (alternate_B - ref_B[1])


def reward_rejected(forget_B: Tensor, alternate_B: Tensor, *ref_B: Tensor, beta: float) -> Tensor:
    """The forget answer's reward, beta log(p_theta / p_ref)."""
    return beta * (forget_B - ref_B[0])


def margin(*seq_logp_B: Tensor, beta: float) -> Tensor:
    """The alternate answer's reward minus the forget answer's."""
    return reward_chosen(*seq_logp_B, beta=beta) - reward_rejected(*seq_logp_B, beta=beta)


def accuracy(*seq_logp_B: Tensor, beta: float) -> Tensor:
    """1 if the alternate answer's reward is above the forget answer's, else 0."""
    return (margin(*seq_logp_B, beta=beta) > 0).float()


@loss(
    kind="sequence",
    retain="nll",
    positive=("beta",),
    diagnostics={
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
        "margin": margin,
        "accuracy": accuracy,
    },
    paper="arXiv:2305.18290",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def dpo(
    forget_seq_logp_B: Tensor,
    alternate_seq_logp_B: Tensor,
    ref_forget_seq_logp_B: Tensor,
    ref_alternate_seq_logp_B: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """DPO with the alternate answer preferred and the forget answer dispreferred.

    L = -(2 / beta) log sigmoid(beta [log(p_theta / p_ref)(alternate) - log(p_theta / p_ref)(forget)]), where
    log p is the SUM over label tokens: eq. 7 of arXiv:2305.18290 times 2 / beta. Minimising it raises the
    alternate's likelihood and lowers the forget answer's.

    Deviation from DPO: the factor 2 / beta, which gives it the scale of NPO (as in arXiv:2404.05868 and the
    field's code).

    Args:
        forget_seq_logp_B: [B] log-probability of each forget answer under the model, nats.
        alternate_seq_logp_B: [B] of the alternate answer to the same question.
        ref_forget_seq_logp_B: [B] of the forget answer under the model before unlearning.
        ref_alternate_seq_logp_B: [B] of the alternate answer under the model before unlearning.
        beta: inverse temperature, > 0.

    Returns:
        [B] per sequence, >= 0; (2 / beta) ln 2 at the reference. If alternate and forget answer are equal,
        the value is the same and the gradient is zero.
    """
    alternate_ratio_B = alternate_seq_logp_B - ref_alternate_seq_logp_B
    forget_ratio_B = forget_seq_logp_B - ref_forget_seq_logp_B
    return -(2.0 / beta) * logsigmoid(beta * (alternate_ratio_B - forget_ratio_B))
