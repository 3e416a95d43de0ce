"""The results of a benchmark, and the files with the results."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.isolated import isolated
from expunge.core.files import read_json, write_json, write_text
from expunge.core.fingerprint import code_version


@dataclass(frozen=True)
class Ratio:
    """One ratio for the reader.

    Attributes:
        name: what is divided by what.
        value: the ratio.
        target: the target in words; empty = no target.
        met: whether the target is met; None = no target.
    """

    name: str
    value: float
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """The results of a benchmark.

    Attributes:
        title: what was compared.
        settings: the settings of the measurement.
        variants: name -> measured values; the first is the baseline.
        ratios: the ratios of these values.
        remarks: how to read the numbers.
    """

    title: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, float]]
    ratios: Sequence[Ratio]
    remarks: Sequence[str] = field(default=())

    def markdown(self) -> str:
        """A section with its settings, a table of measurements and one of ratios."""
        columns = list(dict.fromkeys(key for values in self.variants.values() for key in values))
        lines = [
            f"## {self.title}",
            "",
            "Settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()) + ".",
            "",
        ]
        lines += _table(
            ["", *columns],
            [[name, *[_shown(values.get(key)) for key in columns]] for name, values in self.variants.items()],
        )
        if self.ratios:
            lines += [
                "",
                *_table(["ratio", "value", "target", "met"], [self._row(ratio) for ratio in self.ratios]),
            ]
        lines.append("")
        return "\n".join(lines + [f"{wrapped(remark)}\n" for remark in self.remarks])

    @staticmethod
    def _row(ratio: Ratio) -> list[str]:
        return [
            ratio.name,
            f"{ratio.value:.2f}",
            ratio.target or "-",
            {None: "-", True: "yes", False: "**no**"}[ratio.met],
        ]


def wrapped(text: str, indent: str = "") -> str:
    """Prose in lines of at most 110 columns, the later lines indented; words are not broken."""
    return textwrap.fill(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def machine() -> dict[str, str]:
    """What the numbers depend on besides the settings."""
    import torch
    import transformers

    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {os.environ.get('OMP_NUM_THREADS', '?')} threads"
    )
    return {
        "device": where,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "code": code_version(),
    }


def write(comparisons: Mapping[str, Comparison], folder: Path, command: str, order: Sequence[str]) -> None:
    """Write `benchmarks.md` and `benchmarks.json` into a folder; results of other benchmarks stay there.

    Args:
        comparisons: name of the benchmark -> its results.
        folder: where to write.
        command: the command that measured them.
        order: names of all benchmarks, in the order of the page.
    """
    path = folder / "benchmarks.json"
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    # In another process: this process must not import torch while it measures.
    about = {"command": command, **isolated("benchmarks.comparison:machine")}
    known |= {name: {"measured": about, **asdict(outcome)} for name, outcome in comparisons.items()}
    known = {name: known[name] for name in order if name in known}
    write_json(path, known)
    head = [
        "# Benchmarks",
        "",
        wrapped(
            "Each ratio compares two values from the same run on the same machine; absolute values are "
            "those of this machine. Each variant runs in its own process. It runs twice, and the smaller "
            "value counts. In the second run the C library returns freed buffers to the system, so a "
            "memory peak does not include buffers that the allocator only keeps."
        ),
        "",
    ]
    sections = []
    for entry in known.values():
        measured = ", ".join(f"{key} {value}" for key, value in entry["measured"].items() if key != "command")
        ratios = [Ratio(**ratio) for ratio in entry["ratios"]]
        outcome = Comparison(entry["title"], entry["settings"], entry["variants"], ratios, entry["remarks"])
        sections.append(f"{outcome.markdown()}\n`{entry['measured']['command']}`:\n{wrapped(measured)}.\n")
    write_text(folder / "benchmarks.md", "\n".join([*head, *sections]).rstrip() + "\n")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *[f"| {' | '.join(row)} |" for row in rows],
    ]


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
