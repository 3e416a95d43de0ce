"""Two algorithms with batched backward passes, for any attention: `ghost` and `lora`.

Let y = f(x; theta) be the output of a module and d_it = dl_i/dy_it. The part of <g_i, g> from the parameters
of the module is sum_t <d_it, (df/dtheta g)_it>. For a Linear module the tangent is x V^T, where V is the part
of g for its weight (the "ghost" product; Lee and Kifer 2021, arXiv:2009.03106, compute norms this way). So
`ghost` never computes the gradient of a row. If the gradients of rows are small, as for the factors of LoRA,
`lora` computes them all, sum_t d_it x_it^T, and gets g and every projection from a single pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from expunge.core.errors import UserError
from expunge.influence.forward_mode import dual, reporting_missing_rule, unpacked
from expunge.influence.gradient import EpochGradient, Tensors, checked, norm_of, row_losses
from expunge.influence.module_calls import Call, Owner, check_heard, heard, owners_of
from expunge.influence.projections import Along
from expunge.influence.row_batches import RowBatch, index_of
from expunge.models.outputs import label_outputs, unwrapped

HELD = 4 * 2**30
"""Most bytes that the gradients of all rows may take if `auto` chooses `lora`."""


def ghost(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    gradient: Tensors,
    batches: Iterable[RowBatch],
    reduction: str,
) -> dict[int, Along]:
    """One backward pass per batch, and a tangent of the output of each module along its own parameters.

    Without norms.

    Raises:
        UserError: a module mixes rows, a parameter is used outside its module, or an operation has no forward
            derivative.
    """
    inner = unwrapped(model)
    owners = owners_of(inner, parameters)
    found: dict[int, Along] = {}
    for numbers, side in batches:
        outputs: list[Tensor] = []
        tangents: list[Tensor] = []

        def hear(call: Call, into: Any = (outputs, tangents)) -> None:
            into[0].append(call.output)
            into[1].append(_tangent(call, gradient))

        with torch.enable_grad(), heard(owners, len(numbers), hear) as names:
            loss_B = row_losses(label_outputs(inner, side, index=index_of(side)), reduction)
        check_heard(names, gradient)
        deltas = torch.autograd.grad(loss_B.sum(), outputs, allow_unused=True)
        dot_B = torch.zeros(len(numbers), dtype=torch.float64, device=loss_B.device)
        for delta, tangent in zip(deltas, tangents, strict=True):
            if delta is not None:
                dot_B += (delta * tangent).flatten(1).sum(-1, dtype=torch.float64)
        found |= {number: Along(value) for number, value in zip(numbers, dot_B.tolist(), strict=True)}
    return found


def lora(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Iterable[RowBatch], reduction: str
) -> tuple[EpochGradient, dict[int, Along]]:
    """Compute the gradient of every row with one backward pass per batch, then g, projections and norms.

    All parameters are weights or biases of Linear modules, such as the factors of LoRA. N times their size is
    stored.

    Raises:
        UserError: a parameter does not belong to a Linear module, a module mixes rows, or the gradient is
            zero or not finite.
    """
    inner = unwrapped(model)
    owners = owners_of(inner, parameters)
    if others := _not_linear(owners, parameters):
        message = (
            f"difficulty.algorithm=lora: {len(others)} parameters do not belong only to Linear modules, "
            f"such as {others[0]}"
        )
        hint = "choose difficulty.algorithm=jvp, ghost or naive, or other parameters with difficulty.params"
        raise UserError(message, hint)
    order: list[int] = []
    losses: dict[int, float] = {}
    parts: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for numbers, side in batches:
        calls: list[Call] = []
        with torch.enable_grad(), heard(owners, len(numbers), calls.append) as names:
            loss_B = row_losses(label_outputs(inner, side, index=index_of(side)), reduction)
        check_heard(names, parameters)
        deltas = torch.autograd.grad(loss_B.sum(), [call.output for call in calls], allow_unused=True)
        order += numbers
        losses |= dict(zip(numbers, loss_B.tolist(), strict=True))
        rows = {
            name: torch.zeros(len(numbers), *parameter.shape, device=parameter.device)
            for name, parameter in parameters.items()
        }
        for call, delta_BTO in zip(calls, deltas, strict=True):
            if delta_BTO is not None:
                for local, name in call.owner.local.items():
                    rows[name] += (
                        torch.einsum("bto,bti->boi", delta_BTO, call.args[0].detach())
                        if local == "weight"
                        else delta_BTO.sum(1)
                    )
        for name, value in rows.items():
            parts[name].append(value)
    by_row = {name: torch.cat(values) for name, values in parts.items()}
    g = {name: value.mean(0) for name, value in by_row.items()}
    norm = checked(norm_of(g), losses)
    dot_N = _over_rows(by_row, g, len(order))
    square_N = _over_rows(by_row, None, len(order))
    along = {
        number: Along(*pair)
        for number, *pair in zip(order, dot_N.tolist(), square_N.sqrt().tolist(), strict=True)
    }
    return EpochGradient(g, norm, losses), along


def fits_lora(model: nn.Module, parameters: Mapping[str, nn.Parameter], rows: int) -> bool:
    """Whether `lora` can handle these parameters and the gradients of all rows fit in `HELD` bytes."""
    size = 4 * rows * sum(parameter.numel() for parameter in parameters.values())
    return size <= HELD and not _not_linear(owners_of(unwrapped(model), parameters), parameters)


def _not_linear(owners: list[Owner], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters that do not belong to Linear modules, or also belong to another kind of module."""
    linear = {name for owner in owners if type(owner.module) is nn.Linear for name in owner.local.values()}
    others = {
        name for owner in owners if type(owner.module) is not nn.Linear for name in owner.local.values()
    }
    return [name for name in parameters if name not in linear or name in others]


def _tangent(call: Call, gradient: Tensors) -> Tensor:
    """The tangent of the output of a module along g, only through its own parameters, with fixed inputs."""
    module, local = call.owner.module, call.owner.local
    # A copy, and below a direct call of its forward: hooks must not see this call.
    bare = copy.copy(module)
    bare.__dict__ = dict(module.__dict__)
    with torch.no_grad(), forward_ad.dual_level(), reporting_missing_rule(module):
        held = {key: dual(getattr(module, key).detach(), gradient[name]) for key, name in local.items()}
        bare._parameters = {**module._parameters, **held}  # type: ignore[dict-item]  # a dual tensor is no Parameter
        return unpacked(
            bare.forward(
                *map(_detached, call.args), **{key: _detached(item) for key, item in call.kwargs.items()}
            )
        )[1]


def _detached(item: Any) -> Any:
    return item.detach() if isinstance(item, Tensor) else item


def _over_rows(by_row: Tensors, other: Tensors | None, rows: int) -> Tensor:
    """[N] float64: <row, other> over all names, or <row, row> if `other` is None."""
    total_N = torch.zeros(rows, dtype=torch.float64, device=next(iter(by_row.values())).device)
    for name, value in by_row.items():
        flat_NP = value.flatten(1).double()
        total_N += flat_NP @ other[name].flatten().double() if other is not None else flat_NP.square().sum(-1)
    return total_N
