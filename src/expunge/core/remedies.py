"""Changes that make a training fit the memory of its ranks, the cheapest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from expunge.core.footprint import Parts, peak
from expunge.core.job import OFFLOADED, Job


class Change(NamedTuple):
    """A change, with its override, and the training after it."""

    name: str
    job: Job


def first_that_fits(job: Job, ranks: int, limit: float) -> tuple[Change, Parts] | None:
    """The first change after which a rank fits the limit, and its peak then; None if no change is enough.

    Single changes come first, then combinations: the first two changes, the first three, and so on.

    Args:
        job: the training, which does not fit.
        ranks: W.
        limit: bytes of one rank.
    """
    for change in (*changes(job, ranks), *_together(job, ranks)):
        parts = peak(change.job, ranks)
        if parts.total <= limit:
            return change, parts
    return None


def changes(job: Job, ranks: int) -> Iterator[Change]:
    """The possible single changes, the cheapest first."""
    live = job.reference in ("frozen", "frozen_adapter")
    if live and not any(load.whole_distribution for load in job.loads):
        loads = tuple(tuple(replace(load, reference=False) for load in group) for group in job.groups)
        yield Change("cached reference (reference=cached)", replace(job, reference="cached", groups=loads))
    if not job.sequential and len(job.groups) > 1:
        name = "terms one after the other (compat.switches.driver.sequential_terms=true)"
        yield Change(name, replace(job, sequential=True))
    if not job.checkpointing:
        name = "gradient checkpointing (trainer.args.gradient_checkpointing=true)"
        yield Change(name, replace(job, checkpointing=True))
    rows = job.rows
    while rows > 1 and rows % 2 == 0:
        rows //= 2
        smaller = job.with_rows(rows)
        name = (
            f"micro-batches of {rows} (trainer.args.per_device_train_batch_size={rows}"
            f" trainer.args.gradient_accumulation_steps={smaller.micro_batches})"
        )
        yield Change(name, smaller)
    if job.parts(ranks) < ranks:
        yield Change("sharded weights (parallel=fsdp2)", replace(job, engine="fsdp2"))
    if ranks > 1 and job.engine != OFFLOADED:
        yield Change("sharded, offloaded weights (parallel=fsdp2_offload)", replace(job, engine=OFFLOADED))


def _together(job: Job, ranks: int) -> Iterator[Change]:
    """Combinations of changes, in the order of `changes`."""
    names: list[str] = []
    while (change := next(changes(job, ranks), None)) is not None:
        kind = change.name.partition(" of ")[0]
        names = [*(name for name in names if name.partition(" of ")[0] != kind), change.name]
        job = change.job
        if len(names) > 1:
            yield Change(" + ".join(names), job)
