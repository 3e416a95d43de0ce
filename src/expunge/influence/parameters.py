"""Choose the parameters to differentiate by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from expunge.core.errors import UserError, nearest
from expunge.models.adapter_reference import starts_at_zero
from expunge.models.adapters import is_adapted
from expunge.models.outputs import unwrapped
from expunge.models.selection import plain_name

LORA = ".lora_"
"""Part of the names of adapter tensors."""
KINDS = ("auto", "all", "lora")
"""Possible values of `params`, besides a regular expression."""


class Chosen(NamedTuple):
    """Chosen parameters by name, and notices for the user; a tensor with two names occurs once.

    `kind` is `all`, `lora`, or the regular expression.
    """

    kind: str
    parameters: dict[str, nn.Parameter]
    notices: tuple[str, ...] = ()


def choose_parameters(model: nn.Module, params: str = "auto") -> Chosen:
    """Choose the parameters for the difficulty scores.

    Args:
        model: the model, with its adapter if it has one.
        params: `auto` (the LoRA tensors of a trained adapter, else all weights except those of a fresh
            adapter), `all`, `lora`, or a regular expression for whole parameter names; the parts that an
            adapter adds to names may be left out.

    Raises:
        UserError: `lora` without an adapter, a pattern that is invalid or matches nothing, or weights without
            a gradient.
    """
    named = dict(unwrapped(model).named_parameters())
    fresh = is_adapted(model) and starts_at_zero(model)
    lora = {name: parameter for name, parameter in named.items() if LORA in name}
    kind, notices = params, list[str]()
    if params == "auto":
        kind = "lora" if lora and not fresh else "all"
    if kind == "lora":
        if not lora:
            raise UserError(
                "difficulty.params=lora, but the model has no LoRA adapter",
                "give an adapter folder as the model, or set difficulty.params=all",
            )
        chosen = lora
        if fresh:
            notices.append(_FRESH)
    elif kind == "all":
        chosen = {name: parameter for name, parameter in named.items() if not (fresh and name in lora)}
    else:
        chosen = _matching(named, params, type(unwrapped(model)).__name__)
    stuck = [name for name, parameter in chosen.items() if not parameter.is_floating_point()]
    if stuck:
        hint = "set difficulty.params=lora, or to a regular expression that excludes the quantised weights"
        raise UserError(f"{len(stuck)} weights are quantised and have no gradient, such as {stuck[0]}", hint)
    return Chosen(kind, chosen, tuple(notices))


_FRESH = (
    "the adapter is not trained (B = 0), so the gradient of every A is zero and the scores depend on the "
    "random draw of A: rank correlations between two seeds are only .40-.47; set difficulty.params=all to "
    "score with the weights of the base, or use a trained adapter"
)


@contextmanager
def gradients_for(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """While open, eval mode (dropout off), and only these parameters require gradients; then restored."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in parameters.values()}
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for parameter, flag in flags:
            if flag or id(parameter) in wanted:
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in training.items():
            module.training = mode


def _matching(named: Mapping[str, nn.Parameter], pattern: str, model: str) -> dict[str, nn.Parameter]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"difficulty.params {pattern!r} is not a regular expression: {error}",
            "use the syntax of Python's re module",
        ) from error
    found = {
        name: p
        for name, p in named.items()
        if expression.fullmatch(name) or expression.fullmatch(plain_name(name))
    }
    if not found:
        near = nearest(re.sub(r"\\(.)", r"\1", pattern), list(named), count=3) or list(named)[:3]
        hint = f"the nearest are: {', '.join(near)}; other possible values: {', '.join(KINDS)}"
        raise UserError(
            f"difficulty.params {pattern!r} matches the whole name of no parameter of {model}", hint
        )
    return found
