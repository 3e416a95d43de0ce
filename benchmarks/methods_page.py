"""The results page of the embedded benchmark, and the row of each method on its own page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.comparison import wrapped
from benchmarks.mini_settings import NOT_RUN, Setting, setting_of, shown_values
from expunge.core.files import read_json, write_text
from expunge.core.run_dir import versions
from expunge.report.table import COLLAPSED, DAMAGED, number

METRICS = (
    "forget_quality",
    "model_utility",
    "forget_Q_A_Prob",
    "forget_Q_A_ROUGE",
    "extraction_strength",
    "privleak",
)
COLUMNS = {
    "forget_quality": "forget quality ↑ p",
    "model_utility": "model utility ↑",
    "forget_Q_A_Prob": "forget prob. → r",
    "forget_Q_A_ROUGE": "forget ROUGE → r",
    "extraction_strength": "extraction → r",
    "privleak": "privleak → 0",
    "seconds": "train s",
    "peak_memory_mb": "peak MiB",
}
NOT_FORGOTTEN = 0.5
"""A method did not forget if more than this share of the full model's forget probability is left."""
START, REFERENCE = "full", "retain90"
MARKED = re.compile(r"<!-- mini -->.*?<!-- /mini -->", re.DOTALL)

HEAD = """# Every method on the embedded benchmark

Made by `python -m benchmarks.methods_mini`: 40 invented authors, four of them to forget (40 rows), a Llama
with half a million parameters, and the seeds 0, 1 and 2. Each seed has its own full and retain model. A cell
is the mean and the half-width of the 95% t-interval over the seeds; with three seeds the interval is wide.
Forget quality is a p-value; its cell has the smallest and the largest of the three values instead of an
interval. *r* is the retain model's value. Seconds and peak memory are those of the training only, on one CPU
thread; the memory is that of the whole process.

Every method has the default hyper-parameters of its function and the benchmark's budget
(`configs/budget/mini.yaml`: 50 steps), except for the values under *Given here*. Those values were chosen on
this benchmark with another seed. **Read this page as follows: the methods work, and this is how each of them
fails.** It is not a ranking: some methods have values that suit the benchmark, others do not. A small model
that has memorised its rows says little about a large one.

*collapsed*: utility is below {collapsed:.0%} of the full model's; the other numbers mean nothing. *utility
damaged*: below {damaged:.0%}. *did not forget*: forget probability is above {kept:.0%} of the full model's.
"""

Rows = list[dict[str, Any]]


def write_pages(rows: Mapping[str, Rows], docs: Path) -> None:
    """Write `results/methods-mini.md`, and fill in the text between the marks of the pages in `methods`.

    Args:
        rows: method -> its values, one dict per seed; includes `full` and `retain90`.
        docs: the folder of the documentation.
    """
    reasons = read_json(docs / "results" / "methods-mini-notes.json")
    write_text(docs / "results" / "methods-mini.md", results_page(rows, reasons))
    for page in sorted((docs / "methods").glob("*.md")):
        if page.stem in rows or page.stem in NOT_RUN:
            text = page.read_text(encoding="utf-8")
            filled = MARKED.sub(
                lambda _, stem=page.stem: f"<!-- mini -->\n{own_row(stem, rows, reasons)}\n<!-- /mini -->",
                text,
            )  # type: ignore[misc]
            if filled != text:
                write_text(page, filled)


def results_page(rows: Mapping[str, Rows], reasons: Mapping[str, str]) -> str:
    """The whole table."""
    lines = [_line(name, rows) for name in rows]
    text = [HEAD.format(collapsed=COLLAPSED, damaged=DAMAGED, kept=NOT_FORGOTTEN), *_header(), *lines, ""]
    given = [
        f"| {name} | {shown_values(_setting(name))} | {_setting(name).why} |"
        for name in rows
        if _setting(name).why
    ]
    text += ["## Given here", "", "| method | values | why |", "|---|---|---|", *given, ""]
    named = [
        wrapped(f"* **{name}** ({verdict(rows[name], rows[START])}): {reasons[name]}", "  ")
        for name in rows
        if name in reasons
    ]
    text += ["## Why some fail", "", *named, ""] if named else []
    refused = [f"* {name}: {values[0]['refused']}" for name, values in rows.items() if "refused" in values[0]]
    skipped = [wrapped(f"* {name}: {why}", "  ") for name, why in NOT_RUN.items()]
    text += ["## Not run", "", *skipped, *refused, ""]
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    text += [wrapped(f"Versions: {known}."), ""]
    return "\n".join(text)


def own_row(name: str, rows: Mapping[str, Rows], reasons: Mapping[str, str]) -> str:
    """The results on the page of a method."""
    if name in NOT_RUN:
        return "\n" + wrapped(f"Not run on the embedded benchmark: {NOT_RUN[name]}.") + "\n"
    given = shown_values(_setting(name))
    settings = f"With {given}. " if given else ""
    link = "[methods-mini.md](../results/methods-mini.md)"
    lines = [*_header(), *(_line(shown, rows) for shown in (START, name, REFERENCE)), ""]
    note = f" {reasons[name]}" if name in reasons else ""
    lines.append(wrapped(f"{settings}Three seeds; {link} says how to read the table.{note}"))
    return "\n" + "\n".join(lines) + "\n"


def verdict(found: Rows, start: Rows) -> str:
    """The result of a method, by the rules at the top of the page."""
    if "refused" in found[0]:
        return "not run"
    utility, base = _mean(found, "model_utility") or 0.0, _mean(start, "model_utility") or 1.0
    kept = (_mean(found, "forget_Q_A_Prob") or 0.0) / (_mean(start, "forget_Q_A_Prob") or 1.0)
    if utility < COLLAPSED * base:
        return "collapsed"
    faults = [
        *(["did not forget"] if kept > NOT_FORGOTTEN else []),
        *(["utility damaged"] if utility < DAMAGED * base else []),
    ]
    return ", ".join(faults) or "forgot"


def interval(column: str, values: list[float]) -> str:
    """Mean and half-width of the 95% t-interval over the seeds; for p-values mean, smallest and largest."""
    mean = statistics.fmean(values)
    if column == "forget_quality":
        return f"{number(mean)} [{number(min(values))}, {number(max(values))}]"
    if len(values) < 2:
        return number(mean)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{number(mean)} ± {number(half)}"


def _setting(name: str) -> Setting:
    return setting_of(name, lambda _: Path("alternates.json"))


def _header() -> list[str]:
    return [f"| method | {' | '.join(COLUMNS.values())} | verdict |", f"|{'---|' * (len(COLUMNS) + 2)}"]


def _line(name: str, rows: Mapping[str, Rows]) -> str:
    cells = [
        interval(column, there) if (there := _present(rows[name], column)) else "–" for column in COLUMNS
    ]
    what = {START: "before unlearning", REFERENCE: "the reference"}.get(name) or verdict(
        rows[name], rows[START]
    )
    return f"| {name} | {' | '.join(cells)} | {what} |"


def _present(rows: Rows, column: str) -> list[float]:
    return [value for row in rows if (value := row.get(column)) is not None]


def _mean(rows: Rows, column: str) -> float | None:
    there = _present(rows, column)
    return statistics.fmean(there) if there else None
