"""Rules around an optimizer's step, and what a training loop passes to them.

For each optimizer step, the loop does:

    for rule in rules: rule.on_step_begin(model, step)       # no gradients yet; keep the weights as they are
    ... forward and backward of all micro-batches ...
    for rule in rules: rule.on_backward_done(model, step)    # complete, not clipped; a rule may change them
    ... clip, optimizer.step(), zero_grad ...

Once, when the optimizer exists and before anything wraps it: `for rule in rules: rule.attach(model,
optimizer)`. The values of `metrics` are logged. Rules run in the order of the list; a mask comes last, so it
sees the same gradient as the optimizer.

Rules keep no state between steps: all random draws are functions of (seed, step number), so a resumed run
needs no state of a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from expunge.lm.labels import Batch

Keep = Callable[[str], bool] | None
"""Takes the side that a term is averaged over and returns whether to compute the term; None = all terms."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, as a rule sees it.

    Attributes:
        number: optimizer steps done before this one.
        closure: adds the gradient of the kept terms at the current weights to `.grad`: forward and backward
            of all micro-batches of the step, with gradients exchanged between ranks. Nothing is logged, and
            no gradient is set to zero.
        batches: the micro-batches of the step on this rank, on the device; only those that count.
        seed: of the run.
        all_sum: sums a tensor over the ranks.
        autocast: context of a forward pass.
        take_apart: the gradient of the terms on the side `apart` of the rule, one tensor per trainable
            parameter, if the step kept it out of `.grad`. Else None, and `.grad` is the whole gradient.
    """

    number: int
    closure: Callable[[Keep], None]
    batches: Callable[[], Iterator[Batch]]
    seed: int = 0
    all_sum: Callable[[Tensor], Tensor] = field(default=lambda value: value)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    take_apart: Callable[[], list[Tensor] | None] = field(default=lambda: None)


class StepRule:
    """A rule that does nothing; subclasses override what they need.

    Attributes:
        apart: the side whose gradient the rule wants separately in `on_backward_done`; None = no side.
    """

    apart: str | None = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once, with the optimizer itself (not accelerate's wrapper)."""

    def on_step_begin(self, model: nn.Module, step: Step) -> None:
        """Called before the first forward pass of a step; there must be no gradients afterwards."""

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Called after the last backward pass of a step, before clipping."""

    def metrics(self) -> dict[str, float]:
        """Values of the last step for the log, by name."""
        return {}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters; shared parameters occur once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def apart_of(rules: Sequence[StepRule]) -> str | None:
    """The side whose gradient is kept separate: the first rule's, if no other rule asks for one."""
    asked = [rule.apart is not None for rule in rules]
    return rules[0].apart if asked[:1] == [True] and sum(asked) == 1 else None


def clear_gradients(model: nn.Module) -> None:
    """Set all gradients to None."""
    for parameter in model.parameters():
        parameter.grad = None


def add_gradients(parameters: Sequence[nn.Parameter], found: Sequence[Tensor]) -> None:
    """Add a gradient, one tensor per parameter, to `.grad`."""
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
