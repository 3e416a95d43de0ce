"""Circuit breakers (RR, representation rerouting): turn hidden states of forget text to other directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.lm.logprobs import as_float32, masked_mean
from expunge.methods.base import loss
from expunge.methods.representation import counted_tokens

CODE = "https://github.com/GraySwanAI/circuit-breakers/blob/main/src/lorra_circuit_breaker.py"


@loss(
    kind="sequence",
    gamma=10.0,
    alpha=10.0,
    retain="expunge.methods.rr:rr_retain",
    schedule="reroute",
    paper="arXiv:2406.04313",
    code=CODE,
)
def rr(
    forget_hidden_LBTD: Tensor,
    ref_forget_hidden_LBTD: Tensor,
    forget_mask_BT: Tensor,
    forget_attention_mask_BT: Tensor,
    *,
    module_regex: str | Sequence[str] = (r"model\.layers\.9", r"model\.layers\.19"),
    trainable_params_regex: str | Sequence[str] = (".*",),
) -> Tensor:
    """RR: relu(cos(h_theta, h_ref)), a mean over the modules and the tokens that count, then over sequences.

    L = c_s relu(cos(h_theta, h_ref))(f) + c_r ||h_theta - h_ref||(r), c_s = gamma (1 - t), c_r = alpha t, t =
    step / (2 * steps): the schedule `reroute`, with t = 1/2 at the last step. The gradient is zero for
    vectors at a right angle. At the reference, so at the first step of a run without dropout, the cosine is
    at its maximum and the gradient is zero up to rounding: training starts from rounding noise.

    gamma = alpha = 10 are the authors' values for Llama-3-8B. They train LoRA adapters (r 16, alpha 16,
    dropout .05) on all layers up to the last that is read, lr 1e-4, 150 steps of 16. They read the outputs of
    layers 10 and 20, counted as in hidden_states of transformers.

    Deviations from the authors' code: means are per sequence, then over sequences, not over all tokens of the
    batch. In a row with a prompt only the labels count. The retain term reads the same modules; theirs reads
    the embeddings and every layer up to the last. Its mean leaves out padding; theirs counts padding as 0.

    Args:
        forget_hidden_LBTD: [L, B, T, D] outputs of the modules in the model.
        ref_forget_hidden_LBTD: [L, B, T, D] in the model before unlearning.
        forget_mask_BT: [B, T] True = a label, at its own position.
        forget_attention_mask_BT: [B, T] True = a token, not padding.
        module_regex: patterns; each matches the whole name of one module.
        trainable_params_regex: match the whole names of the parameters that are trained; the others are
            frozen.

    Returns:
        [B] per sequence, from 0 to 1.
    """
    counted_BT = counted_tokens(forget_mask_BT, forget_attention_mask_BT)
    now_LBTD = _counted(forget_hidden_LBTD, counted_BT)
    then_LBTD = _counted(ref_forget_hidden_LBTD, counted_BT)
    return masked_mean(cosine_similarity(now_LBTD, then_LBTD, dim=-1).relu().mean(0), counted_BT)


@loss(kind="sequence", paper="arXiv:2406.04313", code=CODE)
def rr_retain(
    retain_hidden_LBTD: Tensor,
    ref_retain_hidden_LBTD: Tensor,
    retain_mask_BT: Tensor,
    retain_attention_mask_BT: Tensor,
    *,
    module_regex: str | Sequence[str] | None = None,
) -> Tensor:
    """The retain term of RR: ||h_theta - h_ref||, a mean over modules and tokens, then over sequences.

    Args:
        retain_hidden_LBTD: [L, B, T, D] outputs of the modules in the model.
        ref_retain_hidden_LBTD: [L, B, T, D] in the model before unlearning.
        retain_mask_BT: [B, T] True = a label, at its own position.
        retain_attention_mask_BT: [B, T] True = a token, not padding.
        module_regex: null = the method's modules.

    Returns:
        [B] per sequence, >= 0; the gradient is 0 if both models agree exactly.
    """
    counted_BT = counted_tokens(retain_mask_BT, retain_attention_mask_BT)
    difference_LBTD = _counted(retain_hidden_LBTD, counted_BT) - _counted(ref_retain_hidden_LBTD, counted_BT)
    return masked_mean(torch.linalg.vector_norm(difference_LBTD, dim=-1).mean(0), counted_BT)


def _counted(hidden_LBTD: Tensor, counted_BT: Tensor) -> Tensor:
    """States in float32, 0 at tokens that do not count."""
    return torch.where(counted_BT.unsqueeze(-1), as_float32(hidden_LBTD), 0.0)
