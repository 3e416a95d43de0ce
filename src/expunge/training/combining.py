"""Separate gradients of a step, for objectives and rules that combine them in their own way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.methods.combine import Combination
from expunge.models.parallel import Parallel


class StepGradients:
    """Two sums of gradients over the micro-batches of a step, combined after the last micro-batch.

    Ranks exchange nothing in the backward passes; the sums are averaged over ranks at the end of the step.

    Args:
        combination: combines the two sums.
        parallel: the processes over which gradients are averaged.
    """

    def __init__(self, combination: Combination, parallel: Parallel) -> None:
        self.combination, self.parallel = combination, parallel
        self.done = 0
        self.sums: dict[bool, list[Tensor]] = {}

    def backward(
        self, model: nn.Module, backward: Callable[[Tensor], None], loss: Tensor, *, retain: bool
    ) -> None:
        """Back-propagate, and move the gradients from the parameters to the sum they belong to."""
        self.sums[retain] = _added(self.sums.get(retain), _gradient_alone(_trained(model), backward, loss))

    def micro_batch_done(self, model: nn.Module, count: int) -> None:
        """Count a micro-batch; after the last of `count`, give the parameters the combined gradient."""
        self.done += 1
        if self.done < count:
            return
        parameters = _trained(model)
        own, retain = (
            [self.parallel.mean(part) for part in self.sums.get(key) or map(torch.zeros_like, parameters)]
            for key in (False, True)
        )
        for parameter, gradient in zip(parameters, self.combination(own, retain), strict=True):
            parameter.grad = gradient
        self.done, self.sums = 0, {}


class GradientApart:
    """The gradient of one side's terms, summed separately; `.grad` holds the gradient of the other terms.

    Ranks exchange nothing in its backward passes; `take` averages the sum over ranks.

    Args:
        side: the side.
        parallel: the processes over which gradients are averaged.
    """

    def __init__(self, side: str, parallel: Parallel) -> None:
        self.side, self.parallel = side, parallel
        self.sum: list[Tensor] | None = None

    def backward(self, model: nn.Module, backward: Callable[[Tensor], None], loss: Tensor) -> None:
        """Back-propagate, and move the gradients from the parameters to the sum."""
        self.sum = _added(self.sum, _gradient_alone(_trained(model), backward, loss))

    def take(self) -> list[Tensor] | None:
        """Return and reset the gradient of the step, one tensor per trained parameter; None = no gradient."""
        found, self.sum = self.sum, None
        return None if found is None else [self.parallel.mean(part) for part in found]


def _gradient_alone(
    parameters: list[nn.Parameter], backward: Callable[[Tensor], None], loss: Tensor
) -> list[Tensor]:
    """The gradient of one backward pass; `.grad` does not change."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    backward(loss)
    found = [torch.zeros_like(item) if item.grad is None else item.grad for item in parameters]
    for parameter, old in zip(parameters, before, strict=True):
        parameter.grad = old
    return found


def _added(sums: list[Tensor] | None, found: list[Tensor]) -> list[Tensor]:
    return found if sums is None else [old + new for old, new in zip(sums, found, strict=True)]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(hasattr(parameter, "device_mesh") for parameter in parameters):
        raise UserError(
            "this method combines whole gradients, but the gradients of this model are sharded",
            "train without FSDP",
        )
    return parameters
