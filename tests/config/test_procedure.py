"""Choices of the group `procedure`: composed with others, checked by signature, described and listed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from composed import compose_config
from expunge.config.describe import describe
from expunge.config.listing import entries, show
from expunge.config.location import choices, config_roots
from expunge.config.validate import checked, load_config
from expunge.core.config import Config
from expunge.core.errors import UserError

BASE = ("experiment=unlearn/tofu/default", "task_name=x", "eval=null", "paths.data_root=/nowhere")


def composed(*overrides: str, name: str = "unlearn") -> list[str]:
    try:
        load_config(name, [*BASE, *overrides] if name == "unlearn" else overrides)
    except UserError as error:
        return [str(fault) for fault in error.faults]
    return []


@pytest.fixture(scope="module")
def base() -> Config:
    return compose_config("unlearn", [*BASE, "procedure=whp"])


def found_with(base: Config, **sections: Any) -> list[str]:
    """The faults of `base` with values set below a section."""
    tree = copy.deepcopy(dict(base.tree))
    for section, values in sections.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
    return [str(fault) for fault in checked(Config(tree, base.overrides)).faults]


def test_none_is_chosen_by_default_and_the_tree_has_no_such_key() -> None:
    assert "procedure" not in compose_config("unlearn", BASE).tree


@pytest.mark.parametrize("name", choices(config_roots(), "procedure"))
def test_every_choice_finetunes_by_the_recipe_that_was_composed(name: str) -> None:
    cfg = compose_config("unlearn", [*BASE, f"procedure={name}", "budget=tofu_finetune"])
    assert checked(cfg).faults == []
    assert cfg.get("procedure.handler") == f"expunge.procedures.{name}:{name}"
    assert cfg.get("trainer.handler") == "expunge.methods.finetune:finetune"
    assert cfg.get("trainer.args.num_train_epochs") == 5


def test_names_and_numbers() -> None:
    assert composed("procedure=task_vectr") == [
        "procedure=task_vectr: unknown procedure 'task_vectr'\n"
        "  -> did you mean 'task_vector'? known: retrain, task_vector, whp"
    ]
    found = composed(
        "procedure=task_vector",
        "procedure.args.skale=2",
        "procedure.args.scale=-1",
        "procedure.keep_stage=true",
    )
    expected = [
        "procedure.keep_stage=true: there is no key",
        "takes no 'skale'\n  -> did you mean 'scale'?",
        "scale=-1: must be a number of",
    ]
    assert [all(any(words in fault for fault in found) for words in expected), len(found)] == [True, 3]
    stage = ("procedure.args.reinforced.lerning_rate=1", "procedure.args.reinforced.num_train_epochs=0")
    found = composed("procedure=whp", "procedure.args.mode=logits", *stage)
    assert "procedure.args.mode=logits: mixing logits" in found[0]
    assert "did you mean 'learning_rate'" in found[1]
    assert "num_train_epochs=0: must be a number above 0" in found[2]


def test_a_method_that_would_not_be_used_is_refused(base: Config) -> None:
    (typed,) = composed("procedure=task_vector", "trainer=NPO")
    assert "trainer=NPO: every stage of task_vector is finetuning, so the method would not be used" in typed
    (named,) = composed("procedure=task_vector", "experiment=unlearn/mini/npo")
    assert "trainer.handler=expunge.methods.npo:npo: every stage" in named
    found = composed("procedure=whp", "trainer=FT", "trainer.method_args.alpha=2", "mask=magnitude")
    assert "trainer.method_args.alpha=2" in found[0]
    assert "did you mean procedure.args.alpha?" in found[0]
    assert "trainer.mask is given: every stage of whp" in found[1]
    trainer = base.section("trainer")
    retain = {"retain": {"handler": "expunge.methods.retain:kl"}}
    assert "trainer.method_args.retain" in found_with(base, trainer={**trainer, "method_args": retain})[0]
    rules = {"handler": "expunge.optim.adamw:adamw", "rules": {"sam": {"side": "forget"}}}
    assert (
        "finetuning has no term of that side" in found_with(base, trainer={**trainer, "optimizer": rules})[0]
    )


def test_rows_that_are_missing(base: Config) -> None:
    anchored = {"anchor": "forget", "retain": base.get("data.retain")}
    tree = {**base.tree, "data": anchored}
    (fault,) = [str(fault) for fault in checked(Config(tree)).faults]
    assert fault.startswith("data.forget is empty, and whp reads it")
    # A procedure that reads only the forget rows needs no other rows.
    assert (
        checked(Config({**base.tree, "data": {"anchor": "forget", "forget": base.get("data.forget")}})).faults
        == []
    )


def test_a_procedure_outside_unlearning_is_refused() -> None:
    found = composed("experiment=finetune/mini/default", "task_name=x", "+procedure=retrain", name="train")
    assert any("procedures are only for `expunge unlearn`" in fault for fault in found)


def test_sections_that_are_no_procedure(base: Config) -> None:
    assert "this is a choice of the group procedure" in found_with(base, procedure="whp")[0]
    assert "is not a procedure" in found_with(base, procedure={"handler": "expunge.methods.npo:npo"})[0]
    assert "there is no module" in found_with(base, procedure={"handler": "expunge.procedures.wph:whp"})[0]
    assert "must be true or false" in found_with(base, procedure={"keep_stages": 3})[0]
    assert (
        "reinforced=3: must be a section of keys and values"
        in found_with(base, procedure={"args": {"reinforced": 3}})[0]
    )


def test_sums_of_weights_need_whole_weights(base: Config, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    procedure = {"handler": "expunge.procedures.task_vector:task_vector", "args": {}}

    def of_adapter(**adapter: Any) -> list[str]:
        return found_with(
            base, procedure=procedure, model={"adapter": {**base.section("model.adapter"), **adapter}}
        )

    assert of_adapter(type="lora") == []
    assert "only one of them would be in 4 bits" in of_adapter(type="qlora")[0]
    assert "a model with an existing adapter has none" in of_adapter(type="lora", path=str(tmp_path))[0]
    start = {
        "model_args": {**base.section("model.model_args"), "pretrained_model_name_or_path": str(tmp_path)}
    }
    assert any(
        "is an adapter: task_vector computes with whole weights" in fault
        for fault in found_with(base, procedure=procedure, model=start)
    )
    assert not any("whole weights" in fault for fault in found_with(base, model=start))


def test_keeping_the_stages_does_not_change_the_identity(base: Config) -> None:
    kept = Config({**base.tree, "procedure": {**base.get("procedure"), "keep_stages": True}})
    other = Config({**base.tree, "procedure": {**base.get("procedure"), "args": {"alpha": 2.0}}})
    assert kept.identity() == base.identity() != other.identity()


def test_steps_are_reported_for_each_stage(tofu_root: Path) -> None:
    """5 forget rows or 9 retain rows are one step of 32 per epoch.

    The stage `reinforced` has its own 3 epochs, not the run's 10.
    """
    local = f"paths.data_root={tofu_root}"
    cfg = compose_config(
        "unlearn", [*BASE, "procedure=whp", local, "procedure.args.reinforced.num_train_epochs=3"]
    )
    facts = describe(cfg)
    assert facts["rows"] == "5 (forget)"
    assert facts["steps"] == "3 = 3 epochs x 1 (stage reinforced); 10 = 10 epochs x 1 (stage final)"
    assert describe(compose_config("unlearn", [*BASE, "procedure=retrain", local]))["rows"] == "9 (retain)"


def test_listing() -> None:
    listed = {entry.name: entry.summary for entry in entries("procedures")}
    assert set(listed) == {"retrain", "task_vector", "whp"}
    assert listed["whp"].startswith("WHP: learn")
    page = show("task_vector")
    for words in (
        "reads: forget",
        "takes: scale=1.0",
        "stages: finetuned (on the forget rows)",
        "paper: arXiv:2212.04089",
    ):
        assert words in page
