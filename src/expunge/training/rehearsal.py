"""A training step on made-up rows: the run's own driver and optimizer, on fake tensors or real ones."""

from __future__ import annotations

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
    """Replaces an optimizer if no update is rehearsed."""

    param_groups = ({"lr": 0.0},)

    def step(self) -> None:
        """Do nothing."""


class LookedUp:
    """Replaces a cache of log-probs, with the same memory."""

    def outputs(self, side_name: str, side: Side) -> SideOutputs:
        """Zeros for the log-probs of a side's labels."""
        labels: Labels = side["labels"]
        return SideOutputs(labels, logp_M=torch.zeros(labels["label_M"].shape))


class _Accelerator:
    """What a step needs from accelerate, in one process."""

    optimizer_step_was_skipped = False

    def __init__(self, compute_dtype: torch.dtype | None, before_backward: Callable[[], None]) -> None:
        self.compute_dtype, self.before_backward = compute_dtype, before_backward

    def backward(self, loss: Tensor) -> None:
        self.before_backward()
        loss.backward()  # type: ignore[no-untyped-call]

    def autocast(self) -> AbstractContextManager[object]:
        return runtime.autocast(runtime.device(), self.compute_dtype)

    def no_sync(self, _: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model


@dataclass(frozen=True)
class Rows:
    """The micro-batches of one step, as real tensors on the CPU.

    Attributes:
        batches: the micro-batches; all tokens are the same.
        counts: counts of the step, which fake tensors could not give.
    """

    batches: tuple[MicroBatch, ...]
    counts: StepCounts

    @classmethod
    def of(cls, job: Job, objective: Objective) -> Rows:
        """Rows with the lengths of a job."""
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


def rehearsal(
    job: Job,
    model: Any,
    objective: Objective,
    rows: Rows,
    place: Callable[[Tensor], Tensor],
    reference: Reference | None,
    optimizer: torch.optim.Optimizer | None,
    rules: Sequence[StepRule],
    compute_dtype: torch.dtype | None,
    max_grad_norm: float,
    before_backward: Callable[[], None] = lambda: None,
) -> Callable[[], object]:
    """A function that takes one optimizer step on rows of given lengths.

    Args:
        job: the training.
        model: the model to train; its forward pass will run in `compute_dtype`, as with accelerate.
        objective: prepared with the model.
        rows: micro-batches of the step.
        place: applied to each tensor of the micro-batches, for instance to make it fake.
        reference: the model before unlearning, if a term reads it.
        optimizer: the optimizer of the model; None = no update.
        rules: rules around the step.
        compute_dtype: dtype of autocast; None = no autocast.
        max_grad_norm: see `training.step.Stepper`.
        before_backward: called before each backward pass.
    """
    where = runtime.device()
    if compute_dtype is not None:
        model.forward = convert_outputs_to_fp32(torch.autocast(where.type, compute_dtype)(model.forward))
    accelerator: Any = _Accelerator(compute_dtype, before_backward)
    clip = torch.nn.utils.clip_grad_norm_
    accelerator.clip_grad_norm_ = clip if optimizer is not None else lambda *_: torch.zeros(())
    stepper = Stepper(
        model,
        NoOptimizer() if optimizer is None else optimizer,
        Driver(objective, reference, sequential_terms=job.sequential),
        accelerator,
        Parallel("single", 0, 1, where),
        rules=rules,
        max_grad_norm=max_grad_norm,
    )
    batches = [cast(MicroBatch, recursively_apply(place, batch)) for batch in rows.batches]
    return lambda: stepper.step(batches, START, rows.counts)


def optimizer_states(optimizer: torch.optim.Optimizer) -> None:
    """Make the states of an optimizer, by a step with gradients of 0, which are removed afterwards."""
    for group in optimizer.param_groups:
        for parameter in cast(list[Tensor], group["params"]):
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
