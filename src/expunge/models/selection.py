"""Which parameters are trained: those that a method names, the others frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from expunge.core.errors import UserError, nearest

# What an adapter puts into the names of the parameters that it wraps.
_ADAPTER = re.compile(r"base_model\.model\.|\.base_layer|_orig_mod\.")


def train_only(model: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Freeze every parameter whose whole name no pattern matches. What is frozen already, as under an adapter, stays so.

    A frozen parameter has no gradient: it costs no memory, and does not count in the gradient's norm.

    Args:
        model: not wrapped yet.
        patterns: regular expressions for names as the model without an adapter has them.

    Returns:
        The names of the parameters that stay trained.

    Raises:
        UserError: a pattern that matches nothing that is trained, or is no regular expression.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    parameters = {_ADAPTER.sub("", name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept: set[str] = set()
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"trainable_params_regex {pattern!r} is not a regular expression: {error}", "write it as in Python's re"
            ) from error
        found = [name for name in parameters if expression.fullmatch(name)]
        if not found:
            near = ", ".join(nearest(re.sub(r"\\(.)", r"\1", pattern), list(parameters), count=5)) or ", ".join(list(parameters)[:5])
            raise UserError(
                f"trainable_params_regex {pattern!r} matches no parameter of {type(model).__name__} that is trained",
                f"the nearest are: {near}",
            )
        kept.update(found)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in kept)
    return sorted(kept)
