"""ME, maximising entropy: the model is to know nothing of what follows in a forget answer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.lm.divergence import kl
from expunge.lm.logprobs import masked
from expunge.methods.base import loss


@loss(
    kind="token",
    gamma=0.1,
    alpha=1.0,
    retain="nll",
    paper="arXiv:2410.08109",
    code="https://github.com/sail-sg/closer-look-LLM-unlearning/blob/b90ac9699578d01fc51e46bb7a56294627c028e5/trainer/losses.py",
)
def me(forget_logits_BNV: Tensor, forget_mask_BN: Tensor, *, direction: Literal["from_model", "from_uniform"] = "from_model") -> Tensor:
    """ME: KL(p_theta || uniform) = ln V - H(p_theta) at each forget label; with the retain term `nll` it is ME+GD.

    L = gamma mean over forget labels of (ln V - H(p_theta)) + CE(r). Which token is the label does not matter, so that nothing is raised
    in its place. Bounded: 0 <= L <= ln V. The weights, gamma 0.1 and alpha 1, are the authors' for TOFU (lr 1e-5, 5 epochs).

    The authors' code computes KL(uniform || p_theta) instead, which is not bounded, and whose gradient does not fade where p_theta is
    nearly one-hot: `direction="from_uniform"`. (It adds 1e-12 to p_theta before the logarithm; here the logits give it exactly.)

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        forget_mask_BN: [B, N] True = a label.
        direction: which of the two distributions weighs.

    Returns:
        [B, N] per label token, nats, >= 0 up to rounding, 0 where masked and where the distribution is uniform.
    """
    uniform_BNV = torch.zeros_like(forget_logits_BNV)
    if direction == "from_uniform":
        return masked(kl(uniform_BNV, forget_logits_BNV), forget_mask_BN)
    return masked(kl(forget_logits_BNV, uniform_BNV), forget_mask_BN)
