"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from expunge.core.plan import Line, Plan

GIB = 2**30


def plan_text(plan: Plan) -> str:
    """The plan as lines: the model, a table over the ranks, the parts of each peak, and the assumptions."""
    return "\n".join([*_head(plan), "", *_table(plan), "", *_parts(plan), "", *_sources(plan)])


def _head(plan: Plan) -> Iterator[str]:
    share = "all" if plan.trained == plan.parameters else f"{plan.trained:,}"
    yield (
        f"{plan.model}: {plan.parameters:,} weights, {share} trained; reference: {plan.reference};"
        f" engine: {plan.engine}"
    )
    yield f"GPU memory: {plan.limit / GIB:.1f} GiB ({plan.limit_source})"
    yield from (f"rows, {side}: {text}" for side, text in plan.lengths_source.items())


def _table(plan: Plan) -> Iterator[str]:
    titles = (
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
    )
    rows = [titles, *(_cells(line, plan.limit) for line in plan.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(line: Line, limit: float) -> tuple[str, ...]:
    fits = line.parts.total <= limit
    change = f"{line.change}: {_gib(line.changed or 0)} GiB" if line.change else "none"
    hours = line.gpu_hours
    return (
        str(line.ranks),
        "yes" if fits else "no",
        _gib(line.parts.total),
        "tracker" if line.tracked else "formula",
        str(line.rows_a_step),
        f"{line.seconds:.2f}",
        f"{line.sent / 1e9:.2f}",
        "unknown" if line.steps is None else str(line.steps),
        "unknown" if hours is None else f"{hours:.2f}",
        "" if fits else change,
    )


def _parts(plan: Plan) -> Iterator[str]:
    yield "GiB of one rank at its peak:"
    for line in plan.lines:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in line.parts.named().items())
        yield f"  W = {line.ranks}: {parts}"


def _sources(plan: Plan) -> Iterator[str]:
    speed = plan.speed
    yield (
        f"Time: {speed.flops / 1e12:.4g} TFLOP/s a rank ({speed.source}); {speed.inside / 1e9:g} GB/s inside"
        f" a node of {speed.node} and {speed.across / 1e9:g} GB/s across nodes (assumed); a step takes the"
        " longer of computing and sending."
    )
    yield (
        "Memory: computed, not run. `tracker` = torch's memory tracker around the run's own step, `formula` ="
        " closed formulas."
    )
    yield from (f"note: {notice}" for notice in plan.notices)


def _gib(size: float) -> str:
    """GiB, with as many places as a small model needs."""
    return f"{size / GIB:.2f}" if size >= GIB else f"{size / GIB:.4f}"
