"""The two sides of an unlearning run's data: rows to forget, and rows to keep."""

from __future__ import annotations

from typing import Literal, get_args

SideName = Literal["forget", "retain"]
SIDE_NAMES: tuple[SideName, ...] = get_args(SideName)
