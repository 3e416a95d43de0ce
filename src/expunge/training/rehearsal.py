"""A training step on made-up rows: the run's own driver and optimizer, on fake tensors or real ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate.utils import convert_outputs_to_fp32, recursively_apply
from torch import Tensor, nn

from expunge.core.job import Job, Load
from expunge.core.needs import SIDES
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.lm import runtime
from expunge.lm.labels import Labels, Side
from expunge.methods.objective import Objective, StepInfo
from expunge.models.outputs import SideOutputs
from expunge.models.parallel import Parallel
from expunge.models.reference import Reference
from expunge.optim.rules import StepRule
from expunge.training.driver import Driver, StepCounts, count_step, place_of
from expunge.training.order import MicroBatch, micro_batch
from expunge.training.places import special
from expunge.training.step import Stepper

START = StepInfo(0, 1, 0.0, 1.0)


class NoOptimizer:
    """Takes the place of an optimizer whose step is not rehearsed."""

    param_groups = ({"lr": 0.0},)

    def step(self) -> None:
        """Nothing."""


class LookedUp:
    """A cache of log-probs, as far as memory goes."""

    def outputs(self, side_name: str, side: Side) -> SideOutputs:
        """Zeros for the log-probs of a side's labels."""
        labels: Labels = side["labels"]
        return SideOutputs(labels, logp_M=torch.zeros(labels["label_M"].shape))


class _Accelerator:
    """What the step function asks of accelerate, in one process."""

    optimizer_step_was_skipped = False

    def __init__(self, compute_dtype: torch.dtype | None, before_backward: Callable[[], None]) -> None:
        self.compute_dtype, self.before_backward = compute_dtype, before_backward
        self.clips = True

    def backward(self, loss: Tensor) -> None:
        self.before_backward()
        loss.backward()  # type: ignore[no-untyped-call]

    def autocast(self) -> AbstractContextManager[object]:
        return runtime.autocast(runtime.device(), self.compute_dtype)

    def no_sync(self, _: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def clip_grad_norm_(self, parameters: Any, bound: float) -> Tensor | float:
        return torch.nn.utils.clip_grad_norm_(parameters, bound) if self.clips else 0.0

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model


class Rehearsal:
    """Takes optimizer steps on rows of given lengths.

    Args:
        model: to train; its forward pass is replaced by one in `compute_dtype`, as accelerate's is.
        objective: prepared with the model.
        rows: the micro-batches of a step.
        place: what is done to each tensor of a micro-batch, such as making a fake one of it.
        reference: the model before unlearning, where a term reads it.
        optimizer: of the model; None = none takes a step.
        rules: around the step.
        compute_dtype: to autocast to; None = no autocast.
        sequential_terms: see `training.driver.Driver`.
        before_backward: called before each backward pass.
        max_grad_norm: see `training.step.Stepper`.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        rows: Rows,
        *,
        place: Callable[[Tensor], Tensor] | None = None,
        reference: Reference | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        rules: Sequence[StepRule] = (),
        compute_dtype: torch.dtype | None = None,
        sequential_terms: bool = True,
        before_backward: Callable[[], None] = lambda: None,
        max_grad_norm: float = 1.0,
    ) -> None:
        where = runtime.device()
        if compute_dtype is not None:
            inner = torch.autocast(where.type, compute_dtype)(model.forward)
            model.forward = convert_outputs_to_fp32(inner)
        accelerator: Any = _Accelerator(compute_dtype, before_backward)
        accelerator.clips = optimizer is not None
        self.where = where
        self.stepper = Stepper(
            model,
            NoOptimizer() if optimizer is None else optimizer,
            Driver(objective, reference, sequential_terms=sequential_terms),
            accelerator,
            Parallel("single", 0, 1, where),
            rules=rules,
            max_grad_norm=max_grad_norm,
        )
        self.counts = rows.counts
        self.batches = [
            cast(MicroBatch, batch if place is None else recursively_apply(place, batch))
            for batch in rows.batches
        ]

    def step(self) -> None:
        """Take a step."""
        self.stepper.step(self.batches, START, self.counts)

    def seconds(self, count: int) -> float:
        """The mean time of a step, in seconds, after one that is not counted.

        Args:
            count: steps that are timed.
        """
        self.step()
        self._wait()
        begun = time.monotonic()
        for _ in range(count):
            self.step()
        self._wait()
        return (time.monotonic() - begun) / count

    def _wait(self) -> None:
        if self.where.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Rows:
    """The micro-batches of one step, of real tensors on the CPU.

    Attributes:
        batches: with rows of one token.
        counts: what they count, which fake tensors could not say.
    """

    batches: tuple[MicroBatch, ...]
    counts: StepCounts

    @classmethod
    def of(cls, job: Job, objective: Objective) -> Rows:
        """Rows of a job's lengths."""
        loads = {SIDES[load.name]: load for load in job.loads}
        sides = {name: collate(_encoded(load), pad_id=0) for name, load in loads.items()}
        batches = [micro_batch(dict(sides), None, objective.elsewhere) for _ in range(job.micro_batches)]
        places = special(place_of(term) for term in objective.terms if term.kind == "token")
        return cls(tuple(batches), count_step(batches, sorted(objective.sides), Tensor.clone, places))


def _encoded(load: Load) -> list[Encoded]:
    """Rows with the lengths and labels of a load; if it is padded, the last row is one token shorter."""
    share, rest = divmod(load.labels, load.rows)
    found = []
    for row in range(load.rows):
        length = load.tokens - int(load.padded and load.rows > 1 and row == load.rows - 1)
        labels = min(max(1, share + int(row < rest)), length - 1)
        mask = (False,) * (length - labels) + (True,) * labels
        found.append(Encoded((1,) * length, mask, None, length - labels, str(row), row))
    return found


def optimizer_states(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make its states, by a step with gradients of 0 that are gone after it."""
    for group in optimizer.param_groups:
        for parameter in cast(list[Tensor], group["params"]):
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
