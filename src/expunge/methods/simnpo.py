"""SimNPO, simple negative preference optimization: length-normalised NPO without a reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.methods.base import loss


@loss(
    kind="sequence",
    gamma=0.125,
    retain="nll",
    positive=("beta",),
    paper="arXiv:2410.07163",
    code="https://github.com/OPTML-Group/Unlearn-Simple/blob/a7782fcf78a18d2a566172c34ce648728b12406d/TOFU/dataloader.py",
)
def simnpo(
    forget_seq_logp_B: Tensor, forget_len_B: Tensor, *, beta: float = 4.5, delta: float = 0.0
) -> Tensor:
    """SimNPO: NPO without a reference, on the mean instead of the sum over an answer's label tokens.

    L = -(2 / beta) log sigmoid(beta (-log p_theta(y|x) / |y| - delta)), where |y| is the number of label
    tokens. For beta -> 0 its gradient is that of +log p_theta(y|x) / |y|, the per-sequence mean.

    Deviation from the paper: the paper has log sigmoid(-(beta / |y|) log p_theta(y|x) - gamma_paper), with
    the margin outside beta. The authors' code has it inside, and so does this function: gamma_paper = beta *
    delta. Here `gamma` is the term's weight, never the margin.

    Args:
        forget_seq_logp_B: [B] log-probability of each forget answer, the sum over its label tokens, nats.
        forget_len_B: [B] number of label tokens; a row without labels counts as length 1.
        beta: inverse temperature, > 0.
        delta: margin on the mean negative log-likelihood of a token, nats.

    Returns:
        [B] per sequence, >= 0.
    """
    nll_B = -forget_seq_logp_B / forget_len_B.clamp(min=1)
    return -(2.0 / beta) * logsigmoid(beta * (nll_B - delta))
