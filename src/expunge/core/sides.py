"""The two sides of the data in an unlearning run: the rows to forget and the rows to keep."""

from __future__ import annotations

from typing import Literal, get_args

SideName = Literal["forget", "retain"]
SIDE_NAMES: tuple[SideName, ...] = get_args(SideName)
