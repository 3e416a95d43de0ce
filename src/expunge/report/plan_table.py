"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.core.footprint import gib
from expunge.core.plan import Forecast, Line

TITLES = [
    "W",
    "fits",
    "peak GiB",
    "by",
    "rows/step",
    "s/step",
    "sent GB/step",
    "steps",
    "GPU-hours",
    "first change that makes it fit",
]


def plan_text(plan: Forecast) -> str:
    """The plan as lines: the model, a table over the ranks, the parts of each peak, and the assumptions."""
    return "\n".join([*_head(plan), "", *_table(plan), "", *_parts(plan), *_joint(plan), "", *_sources(plan)])


def _head(plan: Forecast) -> Iterator[str]:
    job = plan.job
    share = "all" if job.trained == job.shape.total else f"{job.trained:,}"
    yield (
        f"{plan.model}: {job.shape.total:,} weights, {share} trained; reference: {job.reference};"
        f" engine: {job.engine}"
    )
    yield f"GPU memory: {gib(plan.limit.value)} GiB ({plan.limit.source})"
    yield from (f"rows, {side}: {text}" for side, text in plan.lengths.items())


def _table(plan: Forecast) -> Iterator[str]:
    rows = [TITLES, *(_cells(line, plan) for line in plan.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    if not any(row[-1] for row in rows[1:]):
        widths.pop()
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def _cells(line: Line, plan: Forecast) -> list[str]:
    fits, hours = line.parts.total <= plan.limit.value, line.gpu_hours
    change = f"{line.change[0]}: {gib(line.change[1])} GiB" if line.change else "no change is enough"
    return [
        str(line.ranks),
        "yes" if fits else "no",
        gib(line.parts.total),
        "tracker" if line.tracked else "formula",
        str(plan.job.rows * plan.job.micro_batches * line.ranks),
        f"{line.cost.seconds:.2f}",
        f"{line.cost.sent / 1e9:.2f}",
        "unknown" if line.steps is None else str(line.steps),
        "unknown" if hours is None else f"{hours:.2f}",
        "" if fits else change,
    ]


def _parts(plan: Forecast) -> Iterator[str]:
    """The parts of each peak; numbers of ranks with equal parts share a line."""
    yield "GiB of one rank at its peak:"
    ranks: dict[str, list[str]] = {}
    for line in plan.lines:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in line.parts.named().items())
        ranks.setdefault(parts, []).append(str(line.ranks))
    yield from (f"  W = {', '.join(counts)}: {parts}" for parts, counts in ranks.items())


def _joint(plan: Forecast) -> Iterator[str]:
    found = [
        f"  W = {line.ranks}: {gib(line.joint[0])} GiB, {line.joint[1]:.2f} s/step"
        for line in plan.lines
        if line.joint is not None
    ]
    if found:
        yield "All terms in one pass (compat.switches.driver.sequential_terms=false), by formulas:"
        yield from found


def _sources(plan: Forecast) -> Iterator[str]:
    speed = plan.speed
    yield (
        f"Time: {speed.flops.value / 1e12:.4g} TFLOP/s per GPU ({speed.flops.source});"
        f" {speed.inside.value / 1e9:g} GB/s inside a node of {plan.job.node} ({speed.inside.source});"
        f" {speed.across.value / 1e9:g} GB/s across nodes ({speed.across.source})."
        " A step takes the longer of computing and sending."
    )
    yield (
        "Memory: computed, not run. tracker = torch's memory tracker follows the run's own step;"
        " formula = closed formulas."
    )
    yield from (f"note: {notice}" for notice in plan.notices)
