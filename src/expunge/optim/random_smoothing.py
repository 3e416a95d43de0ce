"""Random smoothing of the forget loss."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from expunge.core.ranges import Count, NotNegative
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
            generators: dict[torch.device, torch.Generator] = {}

            def noise(
                _: int,
                parameter: nn.Parameter,
                sample: int = sample,
                generators: dict[torch.device, torch.Generator] = generators,
            ) -> Tensor:
                if parameter.device not in generators:
                    generators[parameter.device] = _on(
                        parameter.device, step.seed, "smoothing", step.number, sample
                    )
                draw = torch.randn(
                    parameter.shape,
                    generator=generators[parameter.device],
                    device=parameter.device,
                    dtype=torch.float32,
                )
                return draw.mul_(self.sigma).to(parameter.dtype)

            with moved(parameters, noise):
                step.closure(smoothed)
        for parameter in parameters:
            if parameter.grad is not None and self.samples > 1:
                parameter.grad.div_(self.samples)
        if kept:
            present = [
                (one, gradient)
                for one, gradient in zip(parameters, rest, strict=True)
                if gradient is not None
            ]
            add_gradients([one for one, _ in present], [gradient for _, gradient in present])
        elif others is not None:
            step.closure(others)


def _on(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator on the device, because drawing noise for a whole model on the CPU is slow."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") % (2**63 - 1))
