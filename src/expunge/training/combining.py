"""The gradients of a step kept apart, for objectives that put those of their own terms and of the retain term together themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.methods.combine import Combination


class StepGradients:
    """Two sums of gradients over the micro-batches of a step, put together when the last one is done.

    Ranks exchange nothing in the backward passes; the two sums are averaged over them at the end of the step.

    Args:
        combination: puts the two together.
        world_size: number of ranks.
    """

    def __init__(self, combination: Combination, world_size: int = 1) -> None:
        self.combination, self.world_size = combination, world_size
        self.done = 0
        self.sums: dict[bool, list[Tensor]] = {}

    def backward(
        self, model: nn.Module, backward: Callable[[Tensor], None], loss: Tensor, *, retain: bool
    ) -> None:
        """Back-propagate, and move the gradients from the parameters to the sum they belong to."""
        parameters = _trained(model)
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        backward(loss)
        found = [torch.zeros_like(item) if item.grad is None else item.grad for item in parameters]
        sums = self.sums.get(retain)
        self.sums[retain] = (
            found if sums is None else [old + new for old, new in zip(sums, found, strict=True)]
        )
        for parameter, old in zip(parameters, before, strict=True):
            parameter.grad = old

    def micro_batch_done(self, model: nn.Module, count: int) -> None:
        """After each micro-batch; after the last of the step's `count` the parameters get the gradient that is to be taken."""
        self.done += 1
        if self.done < count:
            return
        parameters = _trained(model)
        own, retain = (
            self.sums.get(key) or [torch.zeros_like(item) for item in parameters] for key in (False, True)
        )
        if self.world_size > 1:
            for part in (*own, *retain):
                torch.distributed.all_reduce(part)
                part /= self.world_size
        for parameter, gradient in zip(parameters, self.combination(own, retain), strict=True):
            parameter.grad = gradient
        self.done, self.sums = 0, {}


def _trained(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(hasattr(parameter, "device_mesh") for parameter in parameters):
        raise UserError(
            "gradients that are combined have to be whole, and those of this model are sharded",
            "train without FSDP",
        )
    return parameters
