"""Print the results of a run on the terminal at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from expunge.core.errors import UserError
from expunge.core.layout import result_files
from expunge.report.results import Measured, read_evaluated
from expunge.report.table import number


def print_outcome(folder: Path, suites: Iterable[str], console: Console | None = None) -> None:
    """Print the aggregates and file paths of each suite that has results in a run directory.

    Args:
        folder: the run directory.
        suites: names of suites, in print order.
        console: console for the output; default: stdout.
    """
    console = console or Console()
    for suite in suites:
        try:
            found = read_evaluated(folder.name, folder, suite)
        except UserError:
            # The run was not evaluated with this suite.
            continue
        table = RichTable(
            title=suite, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("metric", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("bootstrap 95%", no_wrap=True)
        for name, measured in found.metrics.items():
            table.add_row(
                name, "–" if measured.value is None else number(measured.value), _interval(measured)
            )
        console.print(table)
        for name, measured in found.metrics.items():
            if measured.value is None:
                console.print(
                    f"no {name}: {measured.reason or 'the reason was not recorded'}",
                    style="dim",
                    highlight=False,
                    soft_wrap=True,
                )
        places = {
            path
            for pair in result_files(folder, suite)
            for path in pair
            if path is not None and path.is_file()
        }
        console.print(f"results: {', '.join(map(str, sorted(places)))}", highlight=False, soft_wrap=True)


def _interval(measured: Measured) -> str:
    if measured.low is None or measured.high is None:
        return ""
    return f"[{number(measured.low)}, {number(measured.high)}]".replace("[", r"\[")
