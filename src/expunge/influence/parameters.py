"""Which parameters a gradient is taken with respect to."""

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
"""What the names of an adapter's tensors contain."""
KINDS = ("auto", "all", "lora")
"""What `params` may be besides a regular expression."""


class Chosen(NamedTuple):
    """Parameters, by what they were chosen.

    Attributes:
        kind: `all`, `lora`, or the regular expression.
        parameters: by their names in the model at hand; a tensor that has two names (tied embeddings) is
            there once.
        notices: what the user should know about the choice.
    """

    kind: str
    parameters: dict[str, nn.Parameter]
    notices: tuple[str, ...] = ()


def choose_parameters(model: nn.Module, params: str = "auto") -> Chosen:
    """The parameters that difficulty is measured by.

    Args:
        model: with its adapter, if it has one.
        params: `auto` (the LoRA tensors of a trained adapter, else all weights but those of a fresh adapter),
            `all`, `lora`, or a regular expression that a parameter's whole name has to match; what an adapter
            puts into the names may be left out.

    Returns:
        The parameters.

    Raises:
        UserError: no adapter where `lora` is asked for, a pattern that matches nothing or is none, or weights
            that have no gradient.
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
                "give the folder of one as the model, or params=all",
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
        hint = "give params=lora, or a regular expression that leaves the quantised weights out"
        raise UserError(
            f"{len(stuck)} of the weights are quantised and have no gradient, such as {stuck[0]}", hint
        )
    return Chosen(kind, chosen, tuple(notices))


_FRESH = (
    "the adapter is a fresh one (B = 0), so the gradient of every A is zero and the scores hang on how A was drawn: two seeds agree only "
    "at rank correlations of .40-.47; difficulty.params=all scores by the weights of the base, and a trained adapter by its own"
)


@contextmanager
def gradients_for(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """While open, the model is in eval mode (dropout off) and these parameters alone require gradients; then all is as it was."""
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
            "write it as in Python's re",
        ) from error
    found = {
        name: p
        for name, p in named.items()
        if expression.fullmatch(name) or expression.fullmatch(plain_name(name))
    }
    if not found:
        near = nearest(re.sub(r"\\(.)", r"\1", pattern), list(named), count=3) or list(named)[:3]
        hint = f"the nearest are: {', '.join(near)}; besides a pattern there are {', '.join(KINDS)}"
        raise UserError(
            f"difficulty.params {pattern!r} matches the whole name of no parameter of {model}", hint
        )
    return found
