"""ME, maximising entropy: the model should know nothing about the next token of a forget row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.lm.divergence import kl
from expunge.methods.base import loss


@loss(
    kind="token",
    gamma=0.1,
    retain="nll",
    places="mask",
    paper="arXiv:2410.08109",
    code="https://github.com/sail-sg/closer-look-LLM-unlearning/blob/b90ac9699578d01fc51e46bb7a56294627c028e5/trainer/losses.py",
)
def me(
    forget_logits_BNV: Tensor,
    *,
    direction: Literal["from_model", "from_uniform"] = "from_model",
    mask: Literal["tokens", "labels", "predictors"] = "tokens",
) -> Tensor:
    """ME: KL(p_theta || uniform) = ln V - H(p_theta) at each token of a forget row; ME+GD with `retain=nll`.

    L = gamma mean over the tokens of forget rows of (ln V - H(p_theta)) + CE(r). The loss does not depend on
    the true token, so no other token is raised instead of it. Questions therefore count like answers, as in
    the authors' runs, which leave questions out for every other loss. Bounded: 0 <= KL <= ln V. The weights
    gamma 0.1 and alpha 1 are the authors' for TOFU (Llama-2-7B, lr 1e-5, 5 epochs, batches of 4 x 4 on two
    GPUs).

    Two deviations from the authors' code. First, it computes KL(uniform || p_theta), which is not bounded,
    and its gradient does not vanish if p_theta is nearly one-hot: `direction="from_uniform"`. (It adds 1e-12
    to p_theta before the logarithm; here the logarithm is exact.) Second, its mean includes the padding, and
    rows are padded to 500 tokens: `mask="predictors"` counts the padding that a batch has.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        direction: the first distribution of the divergence.
        mask: what counts: all tokens that have a predecessor, only the labels, or all positions that have a
            successor, padding included.

    Returns:
        [B, N] per counted position, nats, >= 0 up to rounding, 0 if the distribution is uniform.
    """
    uniform_BNV = torch.zeros_like(forget_logits_BNV)
    if direction == "from_uniform":
        return kl(uniform_BNV, forget_logits_BNV)
    return kl(forget_logits_BNV, uniform_BNV)
