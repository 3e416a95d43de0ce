"""The evaluation results that a run prints at its end."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from expunge.core.files import write_json
from expunge.report.outcome import print_outcome


def printed(folder: Path, *suites: str) -> str:
    out = io.StringIO()
    print_outcome(folder, suites, Console(file=out, width=80))
    return out.getvalue()


def test_values_intervals_reasons_and_places(tmp_path: Path):
    write_json(tmp_path / "TOFU_SUMMARY.json", {"model_utility": 0.625, "forget_quality": None})
    details = {
        "model_utility": {"agg_value": 0.625, "interval": {"low": 0.5, "high": 0.75}},
        "forget_quality": {"agg_value": None, "reason": "no retain_logs_path"},
    }
    write_json(tmp_path / "TOFU_EVAL.json", details)
    text = printed(tmp_path, "tofu")
    assert "0.625" in text
    assert "no forget_quality: no retain_logs_path" in text
    assert str(tmp_path / "TOFU_EVAL.json") in text.replace("\n", "")


def test_a_suite_without_results_is_skipped(tmp_path: Path):
    assert printed(tmp_path, "tofu", "wmdp") == ""
