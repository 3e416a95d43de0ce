"""Compare runs in a table: on the terminal, and as JSON, CSV and Markdown."""

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
"""A model counts as collapsed, or is flagged, if its utility is below this share of the start model's."""


@dataclass(frozen=True)
class Column:
    """A column: the metric, the title, and which direction is better (shown under the title)."""

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
        remark: remark that a reader must know before comparing the run; may be empty.
        collapsed: whether the model lost its utility, so that its other numbers are meaningless.
    """

    run: Evaluated
    remark: str
    collapsed: bool


def judge(runs: Sequence[Evaluated], start: str | None, retain: str | None) -> list[Line]:
    """Add to each run the remark that a reader must know before comparing its numbers.

    Args:
        runs: the runs, in display order.
        start: name of the model before unlearning; damage is measured against its utility. None = no run is
            flagged.
        retain: name of the retain model.

    Returns:
        One line per run.
    """
    utility = {run.name: run.value("model_utility") for run in runs}
    base = utility.get(start) if start is not None else None
    lines = []
    for run in runs:
        remark, collapsed, own = "", False, utility[run.name]
        if run.name == start:
            remark = "before unlearning"
        elif run.name == retain:
            remark = "reference: never saw the forget rows"
        elif base and own is not None and own < COLLAPSED * base:
            remark, collapsed = "collapsed: no utility left, so the other numbers mean nothing", True
        elif base and own is not None and own < DAMAGED * base:
            remark = f"utility below {DAMAGED:.0%} of the start model"
        lines.append(Line(run, remark, collapsed))
    return lines


def compare(
    runs: Mapping[str, Path],
    *,
    start: str | None = None,
    retain: str | None = None,
    write_to: Path | None = None,
    title: str = "",
    console: Console | None = None,
) -> list[Line]:
    """Print a table of runs and write it to files.

    Args:
        runs: run directories by display name.
        start: name of the model before unlearning.
        retain: name of the retain model.
        write_to: path, without suffix, of the files `.json`, `.csv` and `.md`; None = do not write.
        title: title of the table.
        console: console for the output; default: stdout.

    Returns:
        The lines of the table.

    Raises:
        UserError: a run has no results.
    """
    lines = judge([read_evaluated(name, folder) for name, folder in runs.items()], start, retain)
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
    run = line.run
    cost = {"seconds": run.seconds, "steps": run.steps, "peak_memory_mb": run.peak_memory_mb}
    return {"name": run.name, "collapsed": line.collapsed, "remark": line.remark, **cost, "metrics": metrics}


def as_csv(lines: Sequence[Line]) -> str:
    """CSV in full precision, a row per run: `<metric>`, `<metric>_low`, `<metric>_high`; empty = no value."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line.run.metrics))
    writer = csv.writer(out, lineterminator="\n")
    titles = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    writer.writerow(["name", *titles, "seconds", "collapsed", "remark"])
    for line in lines:
        found = [line.run.metrics.get(name, Measured(None)) for name in names]
        cells = [cell for item in found for cell in (item.value, item.low, item.high)]
        writer.writerow([line.run.name, *cells, line.run.seconds, line.collapsed, line.remark])
    return out.getvalue()


def as_markdown(lines: Sequence[Line], title: str = "") -> str:
    """A Markdown table; intervals stand after the values, reasons for missing values below the table."""
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
        "↑ higher is better, → r closer to the retain model is better, → 0 closer to 0 is better; "
        "[low, high] is a bootstrap 95% interval.",
        "",
    ]
    text += [f"* {note}" for note in notes(lines)]
    return "\n".join(text).rstrip() + "\n"


def notes(lines: Sequence[Line]) -> list[str]:
    """Reasons for missing values."""
    reasons = []
    for column in _columns(lines):
        missing = [
            (line.run.name, line.run.metrics[column.metric].reason)
            for line in lines
            if column.metric in line.run.metrics and line.run.metrics[column.metric].value is None
        ]
        for reason in dict.fromkeys(reason for _, reason in missing):
            names = ", ".join(name for name, why in missing if why == reason)
            reasons.append(f"no {column.title} for {names}: {reason or 'the reason was not recorded'}")
    return reasons


def _columns(lines: Sequence[Line]) -> list[Column]:
    """The known columns that occur in at least one run."""
    return [column for column in COLUMNS if any(column.metric in line.run.metrics for line in lines)]


def _cell(line: Line, column: Column, interval: bool = False) -> str:
    found = line.run.metrics.get(column.metric)
    if found is None or found.value is None:
        return "–"
    return f"{number(found.value)} {shown_interval(found) if interval else ''}".rstrip()


def shown_interval(found: Measured) -> str:
    """The interval of a value; empty if it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"[{number(found.low)}, {number(found.high)}]"


def number(value: float) -> str:
    """A value with two or three significant digits; very small and very large values in exponent form."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def plain_table(title: str) -> RichTable:
    """A table without a frame."""
    return RichTable(
        title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def _print(lines: Sequence[Line], title: str, console: Console) -> None:
    """Print a table for 80 columns: headers on several lines, remarks below."""
    columns = _columns(lines)
    table = plain_table(title)
    table.add_column("model", no_wrap=True, vertical="bottom")
    for column in columns:
        table.add_column("\n".join([*column.title.split(), column.better]), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.run.name, *(_cell(line, column) for column in columns), style="dim" if line.collapsed else ""
        )
    console.print(table)
    console.print("[dim]↑ higher is better   → r closer to retain model   → 0 closer to 0   – no value[/dim]")
    for line in lines:
        if line.remark:
            style = "bold red" if line.collapsed else "dim"
            console.print(f"{line.run.name}: {line.remark}", style=style, highlight=False)
    for note in notes(lines):
        console.print(note, style="dim", highlight=False)
