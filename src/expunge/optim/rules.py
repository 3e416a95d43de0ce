"""What may happen around an optimizer's step, and what a training loop hands to it.

A loop that offers rules does, for each optimizer step:

    for rule in rules: rule.on_step_begin(model, step)       # gradients are empty; the weights must be left as they were found
    ... forward and backward of all micro-batches ...
    for rule in rules: rule.on_backward_done(model, step)    # gradients are complete, not clipped; may be replaced or masked
    ... clip, optimizer.step(), zero_grad ...

and once, when the optimizer exists and before anything wraps it: `for rule in rules: rule.attach(model,
optimizer)`. What `metrics` gives is logged. Rules run in the order of the list; a mask comes last, so that it
sees the gradient that the optimizer will see.

Rules keep nothing from one step to the next: all that they draw comes from (seed, step number), so a resumed
run needs no state of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from expunge.lm.labels import Batch


class Closure(Protocol):
    """Adds the gradient of the step's loss at the present weights to `.grad`."""

    def __call__(self, keep: Callable[[str], bool] | None = None) -> None:
        """Forward and backward of all micro-batches of the step, gradients exchanged between ranks; nothing is logged or zeroed.

        Args:
            keep: takes the side that a term is averaged over; only terms for which it is true are computed,
                and nothing is done where there is none. None = all.
        """


def _alone(value: Tensor) -> Tensor:
    return value


def _not_apart() -> None:
    return None


@dataclass(frozen=True)
class Step:
    """One optimizer step, as a rule sees it.

    Attributes:
        number: optimizer steps done before this one.
        closure: computes gradients anew.
        batches: the micro-batches of the step on this rank, on the device, those that count only.
        seed: of the run.
        all_sum: sums a tensor over the ranks.
        autocast: context of a forward pass.
        take_apart: the gradient of the terms on the side that the rule's `apart` names, a tensor for each
            trainable parameter, where the step has kept it out of `.grad`; else None, and `.grad` is whole.
    """

    number: int
    closure: Closure
    batches: Callable[[], Iterator[Batch]]
    seed: int = 0
    all_sum: Callable[[Tensor], Tensor] = _alone
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    take_apart: Callable[[], list[Tensor] | None] = _not_apart


class StepRule:
    """Does nothing; subclasses override what they need.

    Attributes:
        apart: the side whose terms' gradient `on_backward_done` would have kept apart; None = none.
    """

    apart: str | None = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once, with the optimizer itself (not what accelerate makes of it)."""

    def on_step_begin(self, model: nn.Module, step: Step) -> None:
        """Called before the first forward pass of a step; gradients are empty, and must be so afterwards."""

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Called after the last backward pass of a step, before clipping."""

    def metrics(self) -> dict[str, float]:
        """Values of the last step to log, by name."""
        return {}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer moves, shared ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def apart_of(rules: Sequence[StepRule]) -> str | None:
    """The side whose gradient is kept apart: the first rule's, unless another asks as well."""
    asked = [rule.apart is not None for rule in rules]
    return rules[0].apart if asked[:1] == [True] and sum(asked) == 1 else None


def clear_gradients(model: nn.Module) -> None:
    """Drop all gradients."""
    for parameter in model.parameters():
        parameter.grad = None


def add_gradients(parameters: Sequence[nn.Parameter], found: Sequence[Tensor]) -> None:
    """Add a gradient, a tensor for each parameter, to `.grad`."""
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
