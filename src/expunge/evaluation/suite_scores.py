"""The scores of a suite, and their two files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.layout import EXPUNGE, RunLayout
from expunge.evaluation.retain_logs import ABOUT


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        suite: its name, `tofu`.
        metrics: metric -> its entry in `<SUITE>_EVAL.json`.
        listed: the metrics in the summary.
        about: what was evaluated and how: views, template, settings, cost, key.
        from_files: whether the scores were read from the files of an earlier, equal evaluation.
    """

    suite: str
    metrics: Mapping[str, Mapping[str, Any]]
    listed: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    from_files: bool = False

    def aggregates(self) -> dict[str, float | None]:
        """Metric -> aggregate, for the metrics in the summary; None if there is none."""
        return {name: self.metrics[name]["agg_value"] for name in self.listed}

    def reasons(self) -> dict[str, str]:
        """Metric -> why it has no aggregate, for the metrics in the summary that have none."""
        return {
            name: str(self.metrics[name].get("reason", ""))
            for name in self.listed
            if self.metrics[name]["agg_value"] is None
        }

    def write(self, folder: Path, layout: RunLayout = EXPUNGE) -> None:
        """Write `<SUITE>_SUMMARY.json`, if the layout has one, then `<SUITE>_EVAL.json`."""
        summary = layout.summary_file(folder, self.suite)
        if summary is not None:
            write_json(summary, self.aggregates())
        about = {**self.about, "summary": list(self.listed)}
        write_json(layout.eval_file(folder, self.suite), {ABOUT: about, **self.metrics}, indent=1)

    @classmethod
    def read(cls, folder: Path, suite: str, layout: RunLayout = EXPUNGE) -> Scores | None:
        """Read the files of `write`; None if the folder has no complete evaluation of ours."""
        path, summary = layout.eval_file(folder, suite), layout.summary_file(folder, suite)
        if not path.is_file() or (summary is not None and not summary.is_file()):
            return None
        try:
            data = read_json(path)
        except UserError:
            return None
        about = data.pop(ABOUT, None) if isinstance(data, dict) else None
        if not isinstance(about, dict) or "summary" not in about:
            return None
        return cls(suite, data, tuple(about["summary"]), about, from_files=True)
