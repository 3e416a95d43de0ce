"""The modules that own the chosen parameters, and their inputs and outputs in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError


class Owner(NamedTuple):
    """A module and its chosen parameters: name in the module -> name of the parameter.

    Two modules that share a parameter (tied embeddings) are both owners.
    """

    name: str
    module: nn.Module
    local: dict[str, str]


class Call(NamedTuple):
    """One call of an owner in a forward pass: inputs after its forward-pre-hooks, and its output [B, ...]."""

    owner: Owner
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def owners_of(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Owner]:
    """Every module that directly has a chosen parameter."""
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    found = []
    for name, module in model.named_modules():
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        local = {key: by_id[id(value)] for key, value in own if id(value) in by_id}
        if local:
            found.append(Owner(name, module, local))
    return found


@contextmanager
def heard(owners: list[Owner], rows: int, hear: Callable[[Call], None]) -> Iterator[set[str]]:
    """While open, `hear` gets every call of an owner; yields the names of the parameters used in these calls.

    Raises:
        UserError: inside, the output of a module is not a tensor with one entry for each of the `rows`.
    """
    names: set[str] = set()

    def hook_of(owner: Owner) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor) or output.shape[:1] != (rows,) or output.dim() < 2:
                who = owner.name or type(owner.module).__name__
                raise UserError(
                    f"the first dimension of the output of {who} is not the rows, so the gradients of rows "
                    "cannot be separated there",
                    OTHERS,
                )
            names.update(owner.local.values())
            hear(Call(owner, args, kwargs, output))

        return hook

    handles = [owner.module.register_forward_hook(hook_of(owner), with_kwargs=True) for owner in owners]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def check_heard(names: set[str], parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters that matter but were not used by their own module.

    Args:
        names: names of the parameters used in calls of their modules.
        parameters: the tensors by name; a tensor that is zero everywhere does not matter.
    """
    unheard = [
        name for name, value in parameters.items() if name not in names and bool(torch.any(value != 0))
    ]
    if unheard:
        raise UserError(
            f"{len(unheard)} parameters are used outside the module they belong to, such as {unheard[0]}",
            OTHERS,
        )


OTHERS = "choose difficulty.algorithm=jvp or naive"
