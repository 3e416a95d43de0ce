"""UNDIAL: self-distillation from the reference, with the true token's logit lowered."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from expunge.lm.divergence import cross_entropy
from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss


@loss(
    kind="token",
    alpha=0.0,
    retain="nll",
    places="mask",
    paper="arXiv:2402.10052",
    code="https://github.com/locuslab/open-unlearning/blob/19a6141d8baf4b1d25c3a888dd876a764d85def7/src/trainer/utils.py",
)
def undial(
    forget_logits_BNV: Tensor,
    ref_forget_logits_BNV: Tensor,
    forget_label_BN: Tensor,
    *,
    beta: float = 10.0,
    mask: Literal["labels", "predictors"] = "labels",
) -> Tensor:
    """UNDIAL: CE(softmax(z_ref - beta onehot(y)), p_theta) at each forget label.

    L = -mean over label tokens of sum_v softmax(z_ref - beta onehot(y_t))(v) log p_theta(v).

    Deviation from the field's code, on purpose: it averages over every position, prompt and padding included.
    At a position without a label it lowers the logit of the vocabulary entry with index -100. Here only label
    tokens count; `mask="predictors"` restores the field's way.

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        ref_forget_logits_BNV: [B, N, V] logits of the model before unlearning, the teacher.
        forget_label_BN: [B, N] labels.
        beta: the amount subtracted from the true token's logit, > 0 to forget.
        mask: what counts: the labels, or all positions that have a successor, with -100 as the label if there
            is none.

    Returns:
        [B, N] per label token, >= 0.
    """
    teacher_BNV = as_float32(ref_forget_logits_BNV)
    lowered_BN1 = torch.full_like(teacher_BNV[..., :1], -beta)
    # A label of -100 occurs only with mask="predictors". As in the field's code it is used as an index.
    entry_BN = forget_label_BN % teacher_BNV.shape[-1]
    teacher_BNV = teacher_BNV.scatter_add(-1, entry_BN.unsqueeze(-1), lowered_BN1)
    return cross_entropy(teacher_BNV.detach(), forget_logits_BNV)
