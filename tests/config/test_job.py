"""The job of a configuration: the engine whose formulas are used, and the order of terms."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.config.job import job_of, placement_of
from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.core.job import Shape

SHAPE = Shape(2, 16, 32, 2, 2, 8, 64, tied=True)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_offload"])
def test_the_placement_of_the_configuration(name: str) -> None:
    run = ("experiment=unlearn/mini/default", "trainer=NPO", "task_name=x")
    assert placement_of(load_config("unlearn", (*run, f"parallel={name}"))) == name
    assert placement_of(load_config("unlearn", run)) == "ddp"


def test_the_driver_switch_decides_on_the_order_of_terms() -> None:
    trees: list[dict[str, Any]] = [{}, {"compat": {"switches": {"driver": {"sequential_terms": False}}}}]
    assert [job_of(Config(tree), SHAPE).sequential for tree in trees] == [True, False]
