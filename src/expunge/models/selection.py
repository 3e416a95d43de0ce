"""Train only the parameters that a method names; freeze the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from expunge.core.errors import UserError, compiled
from expunge.lm.labels import Side
from expunge.models.outputs import nearest_names, side_outputs

# Parts that an adapter adds to the names of the parameters that it wraps.
_ADAPTER = re.compile(r"base_model\.model\.|\.base_layer|_orig_mod\.")


def plain_name(name: str) -> str:
    """The name of a parameter in the model without an adapter."""
    return _ADAPTER.sub("", name)


def train_only(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Freeze every parameter whose whole name matches no pattern; frozen parameters stay frozen.

    A frozen parameter has no gradient: it costs no gradient memory and is not part of the gradient norm.

    Args:
        model: the model, not wrapped yet.
        patterns: regular expressions for names in the model without an adapter.

    Returns:
        The names of the parameters that are still trained.

    Raises:
        UserError: a pattern matches no trained parameter, or is not a regular expression.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    parameters = {
        plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    kept: set[str] = set()
    for pattern in patterns:
        expression = compiled(pattern, f"trainable_params_regex '{pattern}'")
        found = [name for name in parameters if expression.fullmatch(name)]
        if not found:
            raise UserError(
                f"trainable_params_regex '{pattern}' matches no trained parameter of {type(model).__name__}",
                nearest_names(pattern, list(parameters)),
            )
        kept.update(found)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in kept)
    return sorted(kept)


def freeze_unreached(model: nn.Module, hidden: str | Sequence[str]) -> list[str]:
    """Freeze the parameters that do not affect the outputs of the given modules (those of later layers).

    They would get no gradient, but DDP waits for a gradient of every parameter that affects the model output.

    Returns:
        The names of the parameters that were frozen.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    where = next(model.parameters()).device
    ids_BT = torch.zeros(1, 2, dtype=torch.long, device=where)
    side: Side = {
        "input_ids": ids_BT,
        "attention_mask": torch.ones_like(ids_BT),
        "label_mask": torch.ones_like(ids_BT).bool(),
    }
    with torch.enable_grad():
        outputs = side_outputs(model, side, hidden=hidden)
        states = outputs.hidden_BTD if outputs.hidden_LBTD is None else outputs.hidden_LBTD
        assert states is not None, "side_outputs returns the requested hidden states"
        found = torch.autograd.grad(
            states.float().sum(), [parameter for _, parameter in named], allow_unused=True
        )
    frozen: list[str] = []
    for (name, parameter), gradient in zip(named, found, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen
