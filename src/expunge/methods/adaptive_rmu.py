"""Adaptive RMU: the steering coefficient is proportional to the norm of the steered state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from expunge.lm.logprobs import as_float32
from expunge.methods.base import loss
from expunge.methods.representation import Ratio, counted_tokens, squared_distance
from expunge.methods.rmu import ControlVector


@loss(
    kind="sequence",
    retain="embed_diff",
    objective=ControlVector,
    paper="arXiv:2408.06223",
    code="https://github.com/RebelsNLU-jaist/llm-unlearning/blob/3f951e2956727adb6c64daaff03ebca8fab796c9/baselines/adap_rmu/unlearn.py",
)
def adaptive_rmu(
    forget_hidden_BTD: Tensor,
    ref_forget_hidden_BTD: Tensor,
    control_D: Tensor,
    forget_mask_BT: Tensor,
    forget_attention_mask_BT: Tensor,
    *,
    scale: float = 5.0,
    module_regex: str = r"model\.layers\.7",
    trainable_params_regex: str | Sequence[str] = (".*",),
    ratio: Ratio = "sequence",
) -> Tensor:
    """Adaptive RMU: ||h(x_f) - scale ||h_ref(x_f)|| u||^2 / d, a mean over tokens, then over sequences.

    This is RMU with c = scale * ||h_ref||, so one value fits layers whose states have different norms. The
    tokens that count are those of RMU. The authors' runs on WMDP (Zephyr-7B): scale 5, alpha 1200,
    `mlp.down_proj` of the layer that is read and the two layers before it, 500 batches of 4, lr 5e-5; the
    layer varies from 3 to 31.

    Deviation from the authors' code: it uses one norm for the whole run, the mean over all positions of a
    topic's first batch, padding included, in the trained model before its first step. Here each token has its
    own norm in the model before unlearning, so no value depends on which batch came first.

    Args:
        forget_hidden_BTD: [B, T, D] output of the module in the model.
        ref_forget_hidden_BTD: [B, T, D] in the model before unlearning.
        control_D: [D] the unit vector u.
        forget_mask_BT: [B, T] True = a label, at its own position.
        forget_attention_mask_BT: [B, T] True = a token, not padding.
        scale: the norm of a state's target, as a multiple of the state's norm.
        module_regex: matches the whole name of the module whose output is steered.
        trainable_params_regex: match the whole names of the parameters that are trained; the others are
            frozen.
        ratio: the divisor of a sequence's sum.

    Returns:
        [B] per sequence, >= 0.
    """
    counted_BT = counted_tokens(forget_mask_BT, forget_attention_mask_BT)
    length_BT1 = as_float32(ref_forget_hidden_BTD).norm(dim=-1, keepdim=True)
    return squared_distance(forget_hidden_BTD, scale * length_BT1 * control_D, counted_BT, ratio)
