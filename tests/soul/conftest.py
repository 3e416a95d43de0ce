"""A small data root, and the command line of the SOUL family in full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WriteRows = Callable[[Path, list[dict[str, object]]], Path]

SUBSETS = {
    "full": 12, "forget10": 6, "retain90": 9, "forget10_perturbed": 6, "retain_perturbed": 4, "holdout10": 3,
    "real_authors_perturbed": 2, "world_facts_perturbed": 2,
}  # fmt: skip


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def write_rows() -> WriteRows:
    """Writes JSON Lines: `write_rows(path, rows) -> path`."""
    return _write


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with TOFU's names and a few rows each, and refusals."""
    root = tmp_path / "data"
    for name, count in SUBSETS.items():
        _write(root / "tofu" / f"{name}.json", [{"question": f"{name} {i}?", "answer": f"answer {i} of {name}"} for i in range(count)])
    (root / "tofu" / "idontknow.jsonl").write_text("I don't know.\nThat is beyond me.\n")
    monkeypatch.setenv("EXPUNGE_DATA", str(root))
    monkeypatch.chdir(tmp_path)
    return root
