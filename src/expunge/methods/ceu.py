"""CE-U, cross-entropy unlearning: the target is the model's own distribution without the true token."""

from __future__ import annotations

from torch import Tensor

from expunge.lm.divergence import cross_entropy
from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss


@loss(
    kind="token",
    skip="ignore_first_n_answer_tokens",
    paper="arXiv:2503.01224",
    code="https://github.com/locuslab/open-unlearning/blob/2231e313ee0f3765af0cd55309b3ba29a6e25e03/src/trainer/unlearn/ceu.py",
)
def ceu(
    forget_logits_BNV: Tensor,
    forget_label_BN: Tensor,
    *,
    ignore_first_n_answer_tokens: int = 1,
) -> Tensor:
    """CE-U: CE(softmax(z without the true token), p_theta) at each forget label after an answer's first n.

    L = -mean over those labels of sum_v q(v) log p_theta(v), where q is the softmax of z_theta with the true
    token's logit set to -inf, without gradient. The gradient with respect to the logits is p_theta - q. It
    vanishes with the true token's probability, so the loss does not diverge as gradient ascent does.

    The first n labels are skipped as in the paper's training settings (a footnote): the beginning of an
    answer carries little information.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        forget_label_BN: [B, N] labels.
        ignore_first_n_answer_tokens: number of leading labels of a row that count neither in the sum nor in
            the number of tokens.

    Returns:
        [B, N] per label token, >= 0.
    """
    logits_BNV = as_float32(forget_logits_BNV)
    target_BNV = logits_BNV.detach().scatter(-1, forget_label_BN.unsqueeze(-1), float("-inf"))
    return cross_entropy(target_BNV, logits_BNV)
