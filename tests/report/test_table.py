import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from expunge.core.errors import UserError
from expunge.core.files import write_json
from expunge.report.table import as_csv, as_markdown, compare, number


def run_folder(root: Path, name: str, utility: float, quality: float | None) -> Path:
    """A run directory as an unlearning run writes it."""
    home = root / name / "evals"
    write_json(home / "TOFU_SUMMARY.json", {"forget_quality": quality, "model_utility": utility})
    detail = {
        "forget_quality": {"agg_value": quality, "interval": {"low": 0.1, "high": 0.3, "of": "D"}},
        "model_utility": {
            "agg_value": utility,
            "interval": {"low": utility - 0.1, "high": utility + 0.1, "of": "value"},
        },
    }
    if quality is None:
        detail["forget_quality"] = {"agg_value": None, "reason": "no retain_logs_path"}
    write_json(home / "TOFU_EVAL.json", detail)
    write_json(root / name / "run.json", {"seconds": 2.5, "steps": 10, "peak_memory_mb": 100.0})
    return root / name


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    values = {
        "full": (0.6, 1e-20),
        "GA": (0.1, 0.4),
        "GD": (0.45, 0.2),
        "NPO": (0.55, 0.3),
        "retain": (0.6, None),
    }
    return {name: run_folder(tmp_path, name, *value) for name, value in values.items()}


def test_a_collapsed_model_is_flagged_before_its_numbers_are_compared(runs: dict[str, Path]) -> None:
    """.1 is below .2 x .6 = .12; .45 is below .8 x .6 = .48; .55 is not."""
    out = io.StringIO()
    lines = {
        line.run.name: line
        for line in compare(runs, start="full", retain="retain", console=Console(file=out, width=160))
    }
    assert [name for name, line in lines.items() if line.collapsed] == ["GA"]
    assert lines["GD"].remark == "utility below 80% of the start model"
    assert lines["NPO"].remark == ""
    assert "collapsed" in out.getvalue()
    assert "no forget quality for retain: no retain_logs_path" in out.getvalue()


def test_files_have_full_precision_and_only_intervals_of_the_value(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    lines = compare(runs, start="full", write_to=tmp_path / "table", console=Console(file=io.StringIO()))
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored[0]["metrics"]["forget_quality"] == {
        "value": 1e-20,
        "low": None,
        "high": None,
    }  # its interval is on D
    assert stored[0]["metrics"]["model_utility"]["low"] == 0.5
    assert stored[4]["metrics"]["forget_quality"]["reason"] == "no retain_logs_path"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert (rows[0]["forget_quality"], rows[4]["forget_quality"]) == ("1e-20", "")
    assert rows == list(csv.DictReader(io.StringIO(as_csv(lines))))
    text = (tmp_path / "table.md").read_text()
    assert "| full | 1.0e-20 | 0.600 [0.500, 0.700] | before unlearning |" in text
    assert text == as_markdown(lines)


def test_numbers() -> None:
    assert [number(value) for value in (0.0, 1.86e-23, 0.5, -100.0, 33.219)] == [
        "0.000",
        "1.9e-23",
        "0.500",
        "-100.0",
        "33.2",
    ]


def test_a_run_without_results_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"TOFU_SUMMARY\.json"):
        compare({"x": tmp_path / "empty"})
