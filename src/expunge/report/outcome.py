"""Print the results of a run on the terminal at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from expunge.core.errors import UserError
from expunge.core.layout import result_files
from expunge.report.results import read_evaluated
from expunge.report.table import number, plain_table, shown_interval


def print_outcome(folder: Path, suites: Iterable[str], console: Console | None = None) -> None:
    """Print the aggregates and file paths of each suite that has results in a run directory."""
    console = console or Console()
    for suite in suites:
        try:
            found = read_evaluated(folder.name, folder, suite)
        except UserError:
            # The run was not evaluated with this suite.
            continue
        table = plain_table(suite)
        table.add_column("metric", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("bootstrap 95%", no_wrap=True)
        for name, measured in found.metrics.items():
            value = "–" if measured.value is None else number(measured.value)
            table.add_row(name, value, shown_interval(measured).replace("[", r"\["))
        console.print(table)
        for name, measured in found.metrics.items():
            if measured.value is None:
                reason = f"no {name}: {measured.reason or 'the reason was not recorded'}"
                console.print(reason, style="dim", highlight=False, soft_wrap=True)
        pairs = (path for pair in result_files(folder, suite) for path in pair)
        places = {path for path in pairs if path is not None and path.is_file()}
        console.print(f"results: {', '.join(map(str, sorted(places)))}", highlight=False, soft_wrap=True)
