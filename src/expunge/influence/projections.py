"""Dot products <g_i, g> of the gradient of each row with the mean gradient g. Two algorithms that agree.

`naive` runs one backward pass per row and is the oracle. `jvp` needs no gradient of a row: <g_i, g> is the
derivative of l_i along g, and a forward pass with tangents gives it for a whole batch, without stored
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.influence.forward_mode import dual, reporting_missing_rule, unpacked
from expunge.influence.gradient import Tensors, dot, norm_of, row_losses
from expunge.influence.row_batches import RowBatch, index_of, reduced
from expunge.lm.labels import Side
from expunge.models.outputs import label_outputs, unwrapped

CHUNK = 128
"""Number of label positions whose logits are in memory at once."""
ATTENTIONS = ("eager", "sdpa")
"""The attention implementations with a forward derivative: eager, and SDPA with its math kernel."""


class Along(NamedTuple):
    """Dot product <g_i, g>, and norm ||g_i|| (None if the algorithm does not compute it)."""

    dot: float
    norm: float | None = None


def naive(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    gradient: Tensors,
    batches: Iterable[RowBatch],
    reduction: str,
) -> dict[int, Along]:
    """One backward pass per row, which is alone in its batch: dot product and norm by row number."""
    found: dict[int, Along] = {}
    for (number,), side in batches:
        with torch.enable_grad():
            loss_B = row_losses(label_outputs(model, side, index=index_of(side)), reduction)
            gradients = torch.autograd.grad(loss_B.sum(), list(parameters.values()), allow_unused=True)
        own = {name: value for name, value in zip(parameters, gradients, strict=True) if value is not None}
        found[number] = Along(dot(own, gradient), norm_of(own))
    return found


def jvp(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    gradient: Tensors,
    batches: Iterable[RowBatch],
    reduction: str,
) -> dict[int, Along]:
    """One forward pass with tangents per batch: l_i' = d/de l_i(theta + e g) = <g_i, g>; without norms.

    Consider a label position with last hidden state h and tangent h', and vocabulary weights W with tangent
    W'. The tangent of the logits is t = W h' + W' h, and l' = sum_v p_v (t_v - t_y), which is
    (softmax(W h) - onehot(y)) times t. Logits are in memory for a few label positions at a time. If the model
    computes more than W h after its last hidden state (a soft cap, a scale, an adapter), the tangents are
    taken through that, and the logits are in memory for a whole batch.

    Raises:
        UserError: an operation of the model has no forward derivative.
    """
    found: dict[int, Along] = {}
    plain: bool | None = None
    inner = unwrapped(model)
    for numbers, side in batches:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            plain = _head_is_plain(inner, side) if plain is None else plain
            with forward_ad.dual_level(), reporting_missing_rule(inner):
                duals = {name: dual(p.detach(), gradient[name]) for name, p in parameters.items()}
                call = partial(_called_with, inner, duals)
                if plain:
                    tangent_B = _through_hidden(inner, side, call, parameters, gradient, reduction)
                else:
                    tangent_B = _through_logits(inner, side, call, reduction)
        found |= {number: Along(value) for number, value in zip(numbers, tangent_B.tolist(), strict=True)}
    return found


def cross_entropy_tangent(logits_MV: Tensor, tangent_MV: Tensor, label_M: Tensor) -> Tensor:
    """[M] float64: derivative of -log softmax(logits)[label] along t, sum_v p_v (t_v - t_label)."""
    p_MV = logits_MV.float().softmax(-1)
    # Subtract before the sum: for a nearly certain label, sum p t and t_label are nearly equal.
    below_MV = tangent_MV - tangent_MV.gather(-1, label_M.unsqueeze(-1))
    return (p_MV.double() * below_MV.double()).sum(-1)


def _through_hidden(
    model: nn.Module,
    side: Side,
    call: Callable[..., Any],
    parameters: Mapping[str, nn.Parameter],
    gradient: Tensors,
    reduction: str,
) -> Tensor:
    """[B] tangents of the losses, in closed form from the last hidden states."""
    head = _head(model)
    with _left_out(head):
        outputs = label_outputs(model, side, index=index_of(side), call=call)
    hidden_BND, tangent_BND = unpacked(outputs.logits_BNV)
    weight_VD, bias_V = head.weight.detach(), None if head.bias is None else head.bias.detach()
    along_VD = _tangent_of(head.weight, parameters, gradient)
    along_V = _tangent_of(head.bias, parameters, gradient)
    mask_BN = outputs.mask_BN
    columns = (hidden_BND[mask_BN], tangent_BND[mask_BN], outputs.label_BN[mask_BN])
    parts: list[Tensor] = []
    for hidden_MD, tangent_MD, label_M in zip(
        *(torch.split(column, CHUNK) for column in columns), strict=True
    ):
        tangent_MV = nn.functional.linear(tangent_MD, weight_VD, along_V)
        if along_VD is not None:
            tangent_MV += nn.functional.linear(hidden_MD, along_VD)
        logits_MV = nn.functional.linear(hidden_MD, weight_VD, bias_V)
        parts.append(cross_entropy_tangent(logits_MV, tangent_MV, label_M))
    tangent_BN = torch.zeros(mask_BN.shape, dtype=torch.float64, device=mask_BN.device)
    tangent_BN[mask_BN] = torch.cat(parts)
    return reduced(tangent_BN, mask_BN, reduction)


def _through_logits(model: nn.Module, side: Side, call: Callable[..., Any], reduction: str) -> Tensor:
    """[B] tangents of the losses, from the tangents of the logits of the model."""
    outputs = label_outputs(model, side, index=index_of(side), call=call)
    logits_BNV, tangent_BNV = unpacked(outputs.logits_BNV)
    columns = (logits_BNV.flatten(0, 1), tangent_BNV.flatten(0, 1), outputs.label_BN.flatten())
    parts = [
        cross_entropy_tangent(*part)
        for part in zip(*(torch.split(column, CHUNK) for column in columns), strict=True)
    ]
    return reduced(torch.cat(parts).view(outputs.mask_BN.shape), outputs.mask_BN, reduction)


def _head(model: nn.Module) -> nn.Linear:
    return cast(nn.Linear, cast(Any, model).get_output_embeddings())


def _head_is_plain(model: nn.Module, side: Side) -> bool:
    """Whether the logits are exactly W h + b of the output embeddings, tested on the first row of a batch."""
    head = cast(Any, model).get_output_embeddings()
    if type(head) is not nn.Linear:
        return False
    row = cast(Side, {name: tensor[:1] for name, tensor in cast(dict[str, Tensor], side).items()})
    logits_BNV = label_outputs(model, row).logits_BNV
    with _left_out(head):
        hidden_BND = label_outputs(model, row).logits_BNV
    if hidden_BND.shape[-1] != head.in_features:
        return False
    expected_BNV = nn.functional.linear(hidden_BND, head.weight, head.bias)
    return bool(
        torch.allclose(logits_BNV, expected_BNV, rtol=1e-5, atol=1e-5 * float(expected_BNV.abs().max()))
    )


@contextmanager
def _left_out(head: nn.Module) -> Iterator[None]:
    """While open, the output embeddings return their input; their forward-pre-hooks still run."""
    before = head.__dict__.get("forward")
    head.forward = lambda hidden_BTD: hidden_BTD
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


def _called_with(model: nn.Module, tensors: dict[str, Tensor], **inputs: Any) -> Any:
    """The forward pass with tensors instead of parameters; a shared parameter is replaced everywhere."""
    return functional_call(model, tensors, (), inputs)


def _tangent_of(
    tensor: Tensor | None, parameters: Mapping[str, nn.Parameter], gradient: Tensors
) -> Tensor | None:
    """The tangent of a parameter or None; found by identity, because a shared one has only one name here."""
    return next((gradient[name] for name, parameter in parameters.items() if parameter is tensor), None)
