"""The outcome of a benchmark, and how it is written down."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.isolated import isolated
from expunge.core.files import read_json, write_json, write_text
from expunge.core.fingerprint import code_version


@dataclass(frozen=True)
class Ratio:
    """One number that is to be read.

    Attributes:
        name: what is divided by what.
        value: the ratio.
        target: what it has to be, in words; empty where nothing was asked.
        met: whether it is; None where nothing was asked.
    """

    name: str
    value: float
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """A benchmark's outcome.

    Attributes:
        title: what was compared.
        settings: what it was measured with.
        variants: name -> measured values; the first is the baseline.
        ratios: what to read from them.
        remarks: what to know when reading them.
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
                *_table(["ratio", "value", "asked", "met"], [self._row(ratio) for ratio in self.ratios]),
            ]
        lines.append("")
        return "\n".join(lines + [f"{remark}\n" for remark in self.remarks])

    @staticmethod
    def _row(ratio: Ratio) -> list[str]:
        return [
            ratio.name,
            f"{ratio.value:.2f}",
            ratio.target or "-",
            {None: "-", True: "yes", False: "**no**"}[ratio.met],
        ]


def machine() -> dict[str, str]:
    """What the numbers depend on beside the settings."""
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
    """Write `benchmarks.md` and `benchmarks.json` into a folder; what is there of other benchmarks stays.

    Args:
        comparisons: name of the benchmark -> its outcome.
        folder: where to write.
        command: what measured them.
        order: names of all benchmarks, as the page has them.
    """
    path = folder / "benchmarks.json"
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    # In another process: this one must not import torch while it measures.
    about = {"command": command, **isolated("benchmarks.comparison:machine")}
    known |= {name: {"measured": about, **asdict(outcome)} for name, outcome in comparisons.items()}
    known = {name: known[name] for name in order if name in known}
    write_json(path, known)
    head = [
        "# Benchmarks",
        "",
        "Ratios of two things measured in the same run, on the same machine; absolute values are that machine's. Each variant runs in",
        "processes of its own, two of them one after the other, and the lesser value counts; in the second the C library is told to give",
        "freed buffers back, so that a peak is what was needed at once and not what the allocator kept.",
        "",
    ]
    sections = []
    for entry in known.values():
        measured = ", ".join(f"{key} {value}" for key, value in entry["measured"].items() if key != "command")
        ratios = [Ratio(**ratio) for ratio in entry["ratios"]]
        outcome = Comparison(entry["title"], entry["settings"], entry["variants"], ratios, entry["remarks"])
        sections.append(f"{outcome.markdown()}\n`{entry['measured']['command']}`: {measured}.\n")
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
