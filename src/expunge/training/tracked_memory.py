"""The memory of a training step by torch's trackers: the run's own model, terms and optimizer, no weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from expunge.core.footprint import Parts, peak
from expunge.core.job import Job
from expunge.lm import runtime
from expunge.methods.objective import Objective
from expunge.models.adapter_reference import SameModel
from expunge.models.memory_tracker import Peak, Watch, fake_ranks, fake_tensors, shard
from expunge.models.reference import FrozenCopy, Reference
from expunge.models.weightless import empty_on, sharding_units
from expunge.optim.rules import StepRule
from expunge.training.rehearsal import LookedUp, Rows, optimizer_states, rehearsal

Stepping = Callable[[nn.Module], tuple[torch.optim.Optimizer, list[StepRule]]]
"""Makes the optimizer of a model and the rules of its step."""


class WithoutAdapter(SameModel):
    """The model with its adapter off, without a look at the adapter's weights, because there are none."""

    @contextmanager
    def _state(self) -> Iterator[None]:
        with self.model.disable_adapter():
            yield


def reference_of(job: Job, model: Any, dtype: torch.dtype | None, objective: Objective) -> Reference | None:
    """A reference with the memory of the job's own."""
    if job.reference == "none":
        return None
    if job.reference == "cached":
        return LookedUp()
    made = FrozenCopy if job.reference == "frozen" else WithoutAdapter
    return made(model, autocast_dtype=dtype, hidden=objective.hidden)


def track(
    job: Job, ranks: int, model: Any, objective: Objective, stepping: Stepping | None, max_grad_norm: float
) -> Parts:
    """The peak of one rank, by the trackers.

    Args:
        job: the training.
        ranks: W. Only one rank is tracked; the others are equal.
        model: on the meta device; it gets fake weights.
        objective: prepared with the model.
        stepping: None = no update; the states of the optimizer are computed by formula.
        max_grad_norm: see `training.step.Stepper`.

    Returns:
        Bytes by part.
    """
    rows, dtype, split = Rows.of(job, objective), compute_dtype(job), job.parts(ranks) > 1
    with ExitStack() as opened:
        mesh = opened.enter_context(fake_ranks(job.parts(ranks))) if split else None
        place = opened.enter_context(fake_tensors())
        empty_on(model, torch.device("cpu"))
        reference = reference_of(job, model, dtype, objective)
        copied = [reference.model] if isinstance(reference, FrozenCopy) else []
        # The trackers count the whole shapes of sharded states, so a sharded step has no update.
        optimizer, rules = (None, []) if split or stepping is None else stepping(model)
        if optimizer is not None:
            optimizer_states(optimizer)
        if split:
            shard(model, sharding_units(model), mesh, dtype or torch.float32)
        held = [item for item in (model, optimizer, *copied) if item is not None]
        watch, autocast = Watch(held, model if split else None), None if split else dtype
        step = rehearsal(
            job,
            model,
            objective,
            rows,
            place,
            reference,
            optimizer,
            rules,
            autocast,
            max_grad_norm,
            watch.look,
        )
        with watch:
            step()
        found = watch.peak()
        in_copy = sum(weight.nbytes for copy in copied for weight in copy.parameters())
    return _by_part(found, peak(job, ranks), in_copy, split=split, stepped=optimizer is not None)


def _by_part(found: Peak, formula: Parts, in_copy: int, *, split: bool, stepped: bool) -> Parts:
    """A tracked peak by part; the trackers know neither the logits nor the weights of a frozen copy."""
    parts = found.parts
    # The logits are in memory if the activations are at least those at the end of a forward pass.
    alive = parts["activations"] >= found.passing > 0
    logits = min(formula.logits, parts["activations"]) if alive else 0.0
    return Parts(
        weights=parts["weights"] - (0 if split else in_copy),
        gradients=parts["gradients"],
        optimizer=parts["optimizer"] if stepped else formula.optimizer,
        reference=formula.reference if split or not in_copy else in_copy,
        activations=parts["activations"] - logits,
        logits=logits,
        unsharded=parts["unsharded"],
    )


def measured_seconds(
    job: Job, model: Any, objective: Objective, stepping: Stepping, max_grad_norm: float, count: int = 3
) -> float:
    """The mean time of some real steps in seconds; the model is on its device."""
    where, dtype = runtime.device(), compute_dtype(job)
    if dtype is not None and not runtime.supports_bf16(where):
        dtype = None
    reference, rows = reference_of(job, model, dtype, objective), Rows.of(job, objective)
    optimizer, rules = stepping(model)
    step = rehearsal(
        job, model, objective, rows, lambda x: x.to(where), reference, optimizer, rules, dtype, max_grad_norm
    )

    def wait() -> None:
        if where.type == "cuda":
            torch.cuda.synchronize()

    # The first step warms up.
    step()
    wait()
    begun = time.monotonic()
    for _ in range(count):
        step()
    wait()
    return (time.monotonic() - begun) / count


def compute_dtype(job: Job) -> torch.dtype | None:
    """The dtype of a job's autocast; None = no autocast."""
    return torch.bfloat16 if job.compute_width == 2 else None
