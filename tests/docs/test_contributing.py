"""The method in CONTRIBUTING.md is the same as in the package."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_method_shown_is_the_method_shipped() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    shipped = ["src/expunge/methods/wga.py", "configs/trainer/WGA.yaml"]
    assert shown[:2] == [(ROOT / path).read_text(encoding="utf-8") for path in shipped]
