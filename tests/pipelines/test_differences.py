"""`docs/differences.md` names every switch that a compat file sets, and all choices in it exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")


def spelt(value: object) -> str:
    return "1e-10" if value == 1e-10 else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


@pytest.mark.parametrize("name", ["open_unlearning", "soul"])
def test_every_switch_is_documented(name: str) -> None:
    components = yaml.safe_load((ROOT / "configs" / "compat" / f"{name}.yaml").read_text())["switches"]
    switches = [
        (f"{component}.{keyword}: {spelt(value)}", f"compat={name}")
        for component, keywords in components.items()
        for keyword, value in keywords.items()
    ]
    assert switches
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    missing = [
        switch
        for switch, group in switches
        if not any(f"`{switch}`" in line and f"`{group}`" in line for line in lines)
    ]
    assert missing == []


def test_every_choice_is_there() -> None:
    choices = re.findall(r"`(trainer|model|optimizer)=(\w+)`", TEXT)
    assert {group for group, _ in choices} == {"trainer", "model", "optimizer"}
    assert [
        choice for choice in choices if not (ROOT / "configs" / choice[0] / f"{choice[1]}.yaml").is_file()
    ] == []


def test_every_row_has_four_cells() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(rows) > 30
    assert {line.count("|") for line in rows} == {5}
