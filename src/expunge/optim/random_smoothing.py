"""Random smoothing of the forget loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expunge.core.ranges import Count, NotNegative
from expunge.lm import runtime
from expunge.optim.perturbation import chosen, moved
from expunge.optim.rules import Step, StepRule, add_gradients, clear_gradients, trainable


class RandomSmoothing(StepRule):
    """Averages the forget terms' gradient over weights with Gaussian noise (RS of arXiv:2502.05374).

    The step's gradient is the mean over `samples` draws delta ~ N(0, sigma^2 I) of the gradient of the terms
    on `side` at theta + delta, plus the gradient of all other terms at theta. The draw is a function of
    (seed, step, sample), so all ranks share it and a resumed run repeats it. The weights are restored bit for
    bit before the optimizer's step; sigma = 0 changes nothing. Cost: `samples` more passes over the terms on
    `side`. If the step cannot keep their gradient separate (see `SAM`), one more pass over the other terms.

    Args:
        sigma: standard deviation of the noise.
        samples: draws per step.
        side: terms averaged over this side are smoothed; None = all.
    """

    def __init__(self, *, sigma: NotNegative = 0.01, samples: Count = 1, side: str | None = "forget") -> None:
        self.sigma, self.samples, self.side = float(sigma), int(samples), side
        self.apart = side if self.sigma else None

    def on_backward_done(self, model: nn.Module, step: Step) -> None:
        """Replace the gradient by the averaged gradient."""
        if self.sigma == 0:
            return
        smoothed, others = chosen(self.side)
        parameters = trainable(model)
        # If the step kept the terms of `side` separate, `.grad` is the gradient of the other terms.
        kept = step.take_apart() is not None
        rest = [parameter.grad if kept else None for parameter in parameters]
        clear_gradients(model)
        for sample in range(self.samples):
            with moved(parameters, self._noise(step, sample)):
                step.closure(smoothed)
        for parameter in parameters:
            if parameter.grad is not None and self.samples > 1:
                parameter.grad.div_(self.samples)
        if kept:
            for parameter, gradient in zip(parameters, rest, strict=True):
                if gradient is not None:
                    add_gradients([parameter], [gradient])
        elif others is not None:
            step.closure(others)

    def _noise(self, step: Step, sample: int) -> Callable[[int, nn.Parameter], Tensor]:
        """Draws the noise of one sample on each device: on the CPU it is slow for a whole model."""
        seed = runtime.generator(step.seed, "smoothing", step.number, sample).initial_seed()
        generators: dict[torch.device, torch.Generator] = {}

        def noise(_: int, parameter: nn.Parameter) -> Tensor:
            where = parameter.device
            if where not in generators:
                generators[where] = torch.Generator(where).manual_seed(seed)
            draw = torch.randn(
                parameter.shape, generator=generators[where], device=where, dtype=torch.float32
            )
            return draw.mul_(self.sigma).to(parameter.dtype)

        return noise
