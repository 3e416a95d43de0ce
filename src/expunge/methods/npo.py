"""Negative preference optimization."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import loss


def reward(forget_seq_logp_B: Tensor, ref_forget_seq_logp_B: Tensor, *, beta: float) -> Tensor:
    """The forget answer's reward, beta log(p_theta / p_ref): 0 at first, negative when it is less likely."""
    return beta * (forget_seq_logp_B - ref_forget_seq_logp_B)


@loss(
    kind="sequence",
    retain="nll",
    positive=("beta",),
    diagnostics={"reward": reward},
    paper="arXiv:2404.05868",
    code="https://github.com/licong-lin/negative-preference-optimization/blob/9e5f646b09bb5f1a6eed16085220ed1c3affa42d/TOFU/dataloader.py",
)
def npo(forget_seq_logp_B: Tensor, ref_forget_seq_logp_B: Tensor, *, beta: float = 0.1) -> Tensor:
    """NPO: DPO with the forget answer as the dispreferred answer and no preferred answer.

    L = -(2 / beta) log sigmoid(-beta log(p_theta(y|x) / p_ref(y|x))), eq. 3 of arXiv:2404.05868, where log
    p(y|x) is the SUM over the label tokens. At the reference its gradient is that of +log p_theta(y|x), the
    per-sequence sum. For beta -> 0 this holds everywhere.

    Deviation from the authors' code: none in the formula. Other code in the field with the name NPO uses
    batch-mean log-likelihoods or raw logits; this is the paper's form. The default retain term is `nll` (the
    paper's NPO+RT).

    Args:
        forget_seq_logp_B: [B] log-probability of each forget answer under the model, nats.
        ref_forget_seq_logp_B: [B] the same under the model before unlearning.
        beta: inverse temperature, > 0.

    Returns:
        [B] per sequence, >= 0; (2 / beta) ln 2 at the reference.
    """
    return -(2.0 / beta) * logsigmoid(-beta * (forget_seq_logp_B - ref_forget_seq_logp_B))
