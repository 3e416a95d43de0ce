"""The parameters that weight decay applies to."""

from __future__ import annotations

from typing import Any

from torch import nn

from expunge.core.errors import UserError


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: with weight decay, and without it (norms and biases).

    A norm is recognised by the name of its class (LayerNorm, RMSNorm, Gemma2RMSNorm, ...), a bias by the name
    of the parameter. The order within a group is that of `named_parameters`, as in transformers' Trainer, so
    optimizer states are interchangeable. The second group may be empty.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    owners = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        owner, _, own_name = name.rpartition(".")
        is_norm = "norm" in type(owners[owner]).__name__.lower()
        (plain if is_norm or "bias" in own_name else decayed).append(parameter)
    if not seen:
        raise UserError(
            "no parameter of the model is trainable",
            "check the adapter, or the pattern that freezes the others",
        )
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
