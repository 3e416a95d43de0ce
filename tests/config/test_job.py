"""The job of a configuration: the engine whose formulas are used, and the order of terms."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.config.job import engine_of, job_of
from expunge.core.config import Config
from expunge.core.job import Shape

SHAPE = Shape(2, 16, 32, 2, 2, 8, 64, tied=True)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        (None, "ddp"),
        ("ddp", "ddp"),
        ("fsdp2", "fsdp2"),
        ("fsdp2_offload", "fsdp2_offload"),
        ("zero3", "fsdp2"),
    ],
)
def test_the_engine_of_the_configuration(kind: str | None, engine: str) -> None:
    assert engine_of(Config({"parallel": {"kind": kind}})) == engine
    assert engine_of(Config({})) == "ddp"


def test_the_driver_switch_decides_on_the_order_of_terms() -> None:
    trees: list[dict[str, Any]] = [{}, {"compat": {"switches": {"driver": {"sequential_terms": False}}}}]
    assert [job_of(Config(tree), SHAPE).sequential for tree in trees] == [True, False]
