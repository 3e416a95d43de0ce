"""Faults of methods, adapters and masks on the command line: exit code 2, a solution, and no files left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mini_runs import Outcome, model_is
from test_bad_input import refused

from expunge.core.files import read_json, write_json

Run = Callable[..., Outcome]
LORA = ("model/adapter=lora", "model.adapter.r=4", "model.adapter.alpha=8")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def adapter(unlearn: Run, scratch: Path) -> Path:
    """The folder of a run that trained an adapter, made once."""
    out = scratch / "adapter"
    if not out.exists():
        assert unlearn("trainer=GradAscent", *LORA, out=out).code == 0
    return out


def test_composite_without_its_weight(unlearn: Run) -> None:
    for name in ("GA_FT", "GA_KL", "CL_FT", "CL_KL", "NPO_FT", "SimNPO_FT", "GA_FT_epoch"):
        refused(unlearn(f"trainer={name}"), "trainer.method_args.alpha is not given")
    refused(unlearn("trainer=KL"), "trainer.method_args.gamma")


def test_reference_that_the_adapter_cannot_give(unlearn: Run, adapter: Path) -> None:
    """With its trained adapter switched off, a model is not the model before unlearning."""
    refused(
        unlearn("trainer=NPO", model_is(adapter), "reference=adapter_off"),
        "does not start at zero",
        "reference=auto",
    )
    refused(unlearn("trainer=NPO", "reference=adapter_off"), "adapter")


def test_layer_pattern_that_matches_none_or_several(unlearn: Run) -> None:
    pattern = "trainer.method_args.module_regex="
    refused(unlearn("trainer=RMU"), r"model\.layers\.7", "matches no module", "model.layers.1")
    refused(
        unlearn("trainer=RMU", rf"{pattern}'model\.layers\.\d+'"),
        "matches 2 modules",
        "model.layers.0",
        "model.layers.1",
    )


def test_mask_of_another_model(unlearn: Run, scratch: Path) -> None:
    made = unlearn("trainer=GradAscent", "mask=magnitude", *LORA, out=scratch / "masked")
    assert made.code == 0, made.stderr
    refused(
        unlearn("mask=file", f"trainer.mask.path={made.out / 'mask.safetensors'}"),
        "was made for another model",
    )


def test_adapter_of_another_base(unlearn: Run, adapter: Path, start_model: Path, scratch: Path) -> None:
    other = unlearn("trainer=GradAscent", out=scratch / "other")
    assert other.code == 0, other.stderr
    refused(
        unlearn(model_is(other.out), "model/adapter=lora", f"model.adapter.path={adapter}"),
        "another base",
        str(adapter),
    )


def test_another_rank_or_alpha_than_the_adapter_that_is_continued_has(unlearn: Run, adapter: Path) -> None:
    refused(unlearn(model_is(adapter), "model/adapter=lora", "model.adapter.r=16"), "r", "4", "16")
    refused(unlearn(model_is(adapter), "model/adapter=lora", "model.adapter.alpha=32"), "alpha", "8", "32")


def test_a_fluency_term_without_alternates(unlearn: Run) -> None:
    outcome = unlearn("trainer=ELM", "trainer.method_args.concept=novels")
    refused(
        outcome, "reads alternate answers", "expunge alternates --novice-of", "trainer.method_args.fluency=0"
    )


def test_alternates_of_another_row_set(unlearn: Run, expunge: Run, start_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "alternates.json"
    entries = [{"id": f"{row:016x}", "question": "?", "alternate": ["no"]} for row in range(3)]
    write_json(path, entries)
    data = "data/datasets@data.forget=MINI_forget_altpo"
    outcome = unlearn("trainer=AltPO", data, f"data.forget.MINI_forget_altpo.args.alternate_path={path}")
    refused(outcome, "made for other rows", "expunge alternates")
    assert read_json(path) == entries
