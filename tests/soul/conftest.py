"""Fixtures: a small data root, and writers of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteRows = Callable[[Path, list[dict[str, object]]], Path]

SUBSETS = {
    "full": 12,
    "forget10": 6,
    "retain90": 9,
    "forget10_perturbed": 6,
    "retain_perturbed": 4,
    "holdout10": 3,
    "real_authors_perturbed": 2,
    "world_facts_perturbed": 2,
}


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def write_rows() -> WriteRows:
    """Writes JSON Lines: `write_rows(path, rows) -> path`."""
    return _write


def _row(name: str, number: int) -> dict[str, object]:
    row: dict[str, object] = {"question": f"{name} {number}?", "answer": f"answer {number} of {name}"}
    if name.endswith("_perturbed"):
        row |= {
            "paraphrased_answer": f"it is answer {number}",
            "perturbed_answer": [f"no {number} {other}" for other in range(2)],
        }
    return row


def _write_tofu(root: Path) -> Path:
    for name, count in SUBSETS.items():
        _write(root / "tofu" / f"{name}.json", [_row(name, number) for number in range(count)])
    (root / "tofu" / "idontknow.jsonl").write_text("I don't know.\nThat is beyond me.\n")
    return root


@pytest.fixture(scope="session")
def write_tofu() -> Callable[[Path], Path]:
    """Writes TOFU's subsets with a few rows each, and refusals: `write_tofu(root) -> root`."""
    return _write_tofu


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with TOFU's names, a few rows for each, and refusals."""
    root = _write_tofu(tmp_path / "data")
    monkeypatch.setenv("EXPUNGE_DATA", str(root))
    monkeypatch.chdir(tmp_path)
    return root
