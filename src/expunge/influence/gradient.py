"""The gradient of the whole forget set, and the loss of each row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.influence.row_batches import RowBatch, index_of, reduced
from expunge.lm.logprobs import as_float32
from expunge.models.outputs import LabelOutputs, label_outputs

Tensors = Mapping[str, Tensor]
"""Tensors by parameter name."""


class EpochGradient(NamedTuple):
    """g = (1/N) sum_i grad l_i by parameter name, its norm (float64), and the losses l_i by row number."""

    by_name: dict[str, Tensor]
    norm: float
    losses: dict[int, float]


def epoch_gradient(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[RowBatch], reduction: str
) -> EpochGradient:
    """The mean gradient of the rows. All rows have the same weight, whatever their batch and length.

    No `.grad` is changed.

    Raises:
        UserError: a loss or the gradient is not finite, or the gradient is zero, so a projection on it does
            not exist.
    """
    total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    losses: dict[int, float] = {}
    for numbers, side in batches:
        with torch.enable_grad():
            loss_B = row_losses(label_outputs(model, side, index=index_of(side)), reduction)
            gradients = torch.autograd.grad(loss_B.sum(), list(parameters.values()), allow_unused=True)
        for into, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                into.add_(gradient)
        losses |= dict(zip(numbers, loss_B.tolist(), strict=True))
    for into in total.values():
        into.div_(len(losses))
    return EpochGradient(total, checked(norm_of(total), losses), losses)


def row_losses(outputs: LabelOutputs, reduction: str) -> Tensor:
    """[B] negative log-likelihood of the labels of each row, float32."""
    return reduced(token_nll(outputs.logits_BNV, outputs.label_BN), outputs.mask_BN, reduction)


def token_nll(logits_BNV: Tensor, label_BN: Tensor) -> Tensor:
    """[B, N] -log softmax(logits)[label] as softplus(log sum_(v != y) exp(z_v - z_y)), float32.

    Equals `-lm.logprobs.token_logp`, but with an exact gradient for nearly certain labels, as in memorised
    rows. The gradient of `token_logp` by the logit of the label is p - 1, of which rounding leaves only four
    digits. Here it is -sum_(v != y) p_v, with all digits.
    """
    logits_BNV = as_float32(logits_BNV)
    place_BN1 = label_BN.unsqueeze(-1)
    over_BNV = (logits_BNV - logits_BNV.gather(-1, place_BN1)).scatter(-1, place_BN1, -torch.inf)
    return nn.functional.softplus(over_BNV.logsumexp(-1))


def dot(left: Tensors, right: Tensors) -> float:
    """<left, right> over the names of `left`, accumulated in float64."""
    return math.fsum(
        float(torch.dot(left[name].flatten().double(), right[name].flatten().double())) for name in left
    )


def norm_of(tensors: Tensors) -> float:
    """The 2-norm over all tensors, accumulated in float64."""
    return math.sqrt(
        math.fsum(
            float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors.values()
        )
    )


def checked(norm: float, losses: Mapping[int, float]) -> float:
    """The norm of g, after a check that it and the losses are finite and that it is not zero."""
    broken = [number for number, loss in losses.items() if not math.isfinite(loss)]
    if broken or not math.isfinite(norm):
        what = f"the loss of {len(broken)} rows" if broken else "the gradient of the forget set"
        raise UserError(
            f"{what} is not finite",
            "check the model: it is damaged, or its weights do not belong to its configuration",
        )
    if norm == 0:
        raise UserError(
            "the gradient of the forget set is zero",
            "choose parameters that affect the loss, with difficulty.params",
        )
    return norm
