"""Runs side by side: on the terminal, and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from expunge.core.files import write_json, write_text
from expunge.report.results import Evaluated, Measured, read_evaluated

COLLAPSED, DAMAGED = 0.2, 0.8
"""Shares of the starting model's utility below which a model counts as collapsed, or is flagged."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        metric: name in the summary.
        title: over the column.
        better: how to read it, under the title.
    """

    metric: str
    title: str
    better: str


COLUMNS = (
    Column("forget_quality", "forget quality", "↑ p"),
    Column("model_utility", "model utility", "↑"),
    Column("forget_Q_A_Prob", "forget prob.", "→ r"),
    Column("forget_Q_A_ROUGE", "forget ROUGE", "→ r"),
    Column("forget_truth_ratio", "truth ratio", "→ r"),
    Column("extraction_strength", "extraction", "→ r"),
    Column("privleak", "privleak", "→ 0"),
)


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        run: the run.
        remark: what a reader must know before comparing it; empty where nothing.
        collapsed: whether its utility is gone, so that its other numbers say nothing.
    """

    run: Evaluated
    remark: str
    collapsed: bool


def judge(runs: Sequence[Evaluated], start: str | None, retain: str | None) -> list[Line]:
    """Say of each run what must be known before its numbers are compared.

    Args:
        runs: the runs, in the order to show.
        start: name of the model before unlearning, whose utility is the measure of damage; None = nothing is
            flagged.
        retain: name of the retain model.

    Returns:
        A line a run.
    """
    utility = {run.name: run.value("model_utility") for run in runs}
    base = utility.get(start) if start is not None else None
    lines = []
    for run in runs:
        remark, collapsed, own = "", False, utility[run.name]
        if run.name == start:
            remark = "before unlearning"
        elif run.name == retain:
            remark = "never saw the rows: the reference"
        elif base and own is not None and own < COLLAPSED * base:
            remark, collapsed = "collapsed: utility is gone, the rest says nothing", True
        elif base and own is not None and own < DAMAGED * base:
            remark = f"utility below {DAMAGED:.0%} of the start's"
        lines.append(Line(run, remark, collapsed))
    return lines


def compare(
    runs: Mapping[str, Path],
    *,
    start: str | None = None,
    retain: str | None = None,
    write_to: Path | None = None,
    title: str = "",
    suite: str = "tofu",
    console: Console | None = None,
) -> list[Line]:
    """Print a table of runs and write it.

    Args:
        runs: run directories by the names to show.
        start: name of the model before unlearning.
        retain: name of the retain model.
        write_to: path without ending of the files `.json`, `.csv` and `.md`; None = not written.
        title: over the table.
        suite: which results to read.
        console: where to print; stdout by default.

    Returns:
        The lines of the table.

    Raises:
        UserError: a run without results.
    """
    lines = judge([read_evaluated(name, folder, suite) for name, folder in runs.items()], start, retain)
    _print(lines, title, console or Console())
    if write_to is not None:
        write_json(write_to.with_suffix(".json"), [as_record(line) for line in lines])
        write_text(write_to.with_suffix(".csv"), as_csv(lines))
        write_text(write_to.with_suffix(".md"), as_markdown(lines, title))
    return lines


def as_record(line: Line) -> dict[str, Any]:
    """A line as plain values: every metric of the run with its interval, and the remark."""
    metrics = {
        name: {"value": found.value, "low": found.low, "high": found.high}
        | ({"reason": found.reason} if found.value is None else {})
        for name, found in line.run.metrics.items()
    }
    cost = {"seconds": line.run.seconds, "steps": line.run.steps, "peak_memory_mb": line.run.peak_memory_mb}
    return {
        "name": line.run.name,
        "collapsed": line.collapsed,
        "remark": line.remark,
        **cost,
        "metrics": metrics,
    }


def as_csv(lines: Sequence[Line]) -> str:
    """Full precision, a row a run, `<metric>`, `<metric>_low`, `<metric>_high`; empty where there is no value."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line.run.metrics))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "name",
            *(f"{name}{part}" for name in names for part in ("", "_low", "_high")),
            "seconds",
            "collapsed",
            "remark",
        ]
    )
    for line in lines:
        cells = [
            getattr(line.run.metrics.get(name, Measured(None)), part)
            for name in names
            for part in ("value", "low", "high")
        ]
        writer.writerow(
            [
                line.run.name,
                *("" if cell is None else cell for cell in cells),
                line.run.seconds,
                line.collapsed,
                line.remark,
            ]
        )
    return out.getvalue()


def as_markdown(lines: Sequence[Line], title: str = "") -> str:
    """A Markdown table; the interval stands behind each value that has one, reasons of missing values below."""
    columns = _columns(lines)
    head = ["model", *(f"{column.title} {column.better}" for column in columns), "remark"]
    rows = [
        [line.run.name, *(_cell(line, column, interval=True) for column in columns), line.remark]
        for line in lines
    ]
    text = [f"**{title}**\n"] if title else []
    text += [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    text += [
        "",
        "↑ higher is better, → r as near the retain model's as can be, → 0 as near 0 as can be; [low, high] is a bootstrap 95% interval.",
        "",
    ]
    text += [f"* {note}" for note in notes(lines)]
    return "\n".join(text).rstrip() + "\n"


def notes(lines: Sequence[Line]) -> list[str]:
    """Why values are missing, and how to read those that are there."""
    told = []
    for column in _columns(lines):
        missing = [(line.run.name, line.run.metrics[column.metric].reason) for line in lines if column.metric in line.run.metrics
                   and line.run.metrics[column.metric].value is None]  # fmt: skip
        for reason in dict.fromkeys(reason for _, reason in missing):
            names = ", ".join(name for name, why in missing if why == reason)
            told.append(f"no {column.title} for {names}: {reason or 'no reason is recorded'}")
    return told


def _columns(lines: Sequence[Line]) -> list[Column]:
    """The known columns that some run has."""
    return [column for column in COLUMNS if any(column.metric in line.run.metrics for line in lines)]


def _cell(line: Line, column: Column, interval: bool = False) -> str:
    found = line.run.metrics.get(column.metric)
    if found is None or found.value is None:
        return "–"
    text = number(found.value)
    return (
        f"{text} [{number(found.low)}, {number(found.high)}]"
        if interval and found.low is not None and found.high is not None
        else text
    )


def number(value: float) -> str:
    """Three significant digits; the exponent form where a decimal would hide them or run long."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _print(lines: Sequence[Line], title: str, console: Console) -> None:
    """Narrow enough for 80 columns: headers on several lines, remarks below."""
    columns = _columns(lines)
    table = RichTable(
        title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("model", no_wrap=True, vertical="bottom")
    for column in columns:
        table.add_column("\n".join([*column.title.split(), column.better]), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.run.name, *(_cell(line, column) for column in columns), style="dim" if line.collapsed else ""
        )
    console.print(table)
    console.print("[dim]↑ higher is better   → r nearer the retain model's   → 0 nearer 0   – no value[/dim]")
    for line in lines:
        if line.remark:
            console.print(
                f"{line.run.name}: {line.remark}",
                style="bold red" if line.collapsed else "dim",
                highlight=False,
            )
    for note in notes(lines):
        console.print(note, style="dim", highlight=False)
