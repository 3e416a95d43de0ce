"""KL as a method: move away from the reference on the forget set, and towards it on the retain set."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from expunge.methods.base import loss
from expunge.methods.retain import Form, distance


@loss(
    kind="token",
    gamma=None,
    retain="kl",
    places="mask",
    paper="arXiv:2404.18239",
    code="https://github.com/OPTML-Group/SOUL/blob/997a915f805202708e49be4ebdefcb9f5b593d5e/src/unlearn/KL.py",
)
def forget_kl(
    forget_logits_BNV: Tensor,
    ref_forget_logits_BNV: Tensor,
    *,
    form: Form = "kl",
    mask: Literal["labels", "all"] = "labels",
) -> Tensor:
    """The forget term of KL: -KL(ref || theta) of the next-token distributions at the forget labels.

    L = -gamma mean over forget labels of KL(ref || theta) + alpha mean over retain labels of KL(ref ||
    theta). Unbounded below. At the reference, so at the first step of a run, both gradients are zero up to
    rounding: training with this loss starts from rounding noise.
    `gamma` is required: with a default of 0, as in public code, the method would forget nothing.

    Deviation from SOUL's code: its term is -sum p_theta log p_ref over all positions, padding included. This
    is the reversed divergence without the entropy; its gradient at the reference is not zero.
    `form="reverse_cross_entropy"` and `mask="all"` restore it (`compat=soul`).

    Args:
        forget_logits_BNV: [B, N, V] logits of the model.
        ref_forget_logits_BNV: [B, N, V] logits of the model before unlearning.
        form: the distance between the two distributions.
        mask: what counts: the labels, or all positions, prompt and padding included.

    Returns:
        [B, N] per label token, <= 0 up to rounding.
    """
    return -distance(ref_forget_logits_BNV, forget_logits_BNV, form)
