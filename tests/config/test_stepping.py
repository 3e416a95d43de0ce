"""Faults of `trainer.optimizer` and `trainer.mask`, found before anything is loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from composed import compose_config
from expunge.config.location import choices, config_roots
from expunge.config.short_names import (
    COMBINATIONS,
    DATASETS,
    OPTIMIZERS,
    RETAIN_TERMS,
    RULES,
    SCHEDULES,
    SCORES,
)
from expunge.config.validate import checked, load_config
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.handlers import load_handler, read_signature

ROOTS = config_roots()
BASE = ("experiment=unlearn/tofu/default", "task_name=x", "trainer=GradDiff", "eval=null")


@pytest.fixture(scope="module")
def base() -> Config:
    return compose_config("unlearn", [*BASE, "paths.data_root=/nowhere"])


def found_with(base: Config, trainer: Any, *overrides: str, **top: Any) -> list[str]:
    """The faults of `base` with `trainer.optimizer` and `trainer.mask` set."""
    tree = {**copy.deepcopy(dict(base.tree)), **top}
    tree["trainer"] |= trainer
    return [str(fault) for fault in checked(Config(tree, (*base.overrides, *overrides))).faults]


def composed(*overrides: str, name: str = "unlearn") -> list[str]:
    try:
        load_config(name, [*BASE, *overrides] if name == "unlearn" else overrides)
    except UserError as error:
        return [str(fault) for fault in error.faults]
    return []


def test_nothing_is_chosen_by_default(base: Config) -> None:
    """Without them the tree has no such keys, so the identity of older runs stays the same."""
    assert not {"optimizer", "mask"} & set(base.tree["trainer"])
    assert not {"optimizer", "mask"} & set(compose_config("train").tree["trainer"])


@pytest.mark.parametrize("group", ["optimizer", "mask"])
def test_every_choice_is_sound(base: Config, group: str, tmp_path: Path) -> None:
    (tmp_path / "mask.safetensors").write_bytes(b"")
    for name, path in choices(ROOTS, group).items():
        node = yaml.safe_load(path.read_text())
        if "path" in node:
            node["path"] = str(tmp_path / "mask.safetensors")
        assert found_with(base, {group: node}) == [], name


def test_options_are_typed_like_those_of_methods() -> None:
    overrides = (
        "optimizer=sophia",
        "trainer.optimizer.rho=0.1",
        "trainer.optimizer.rules.sam.rho=0.02",
        "mask=wagle",
        "trainer.mask.mu=0.01",
    )
    assert (
        composed(*overrides, "trainer.mask.ratio=0.5", "trainer.mask.params='.*mlp.*'", "trainer.mask.seed=4")
        == []
    )
    tree = load_config("unlearn", [*BASE, *overrides]).tree["trainer"]
    assert tree["optimizer"] == {
        "handler": "expunge.optim.sophia:sophia",
        "rho": 0.1,
        "rules": {"sam": {"rho": 0.02}},
    }
    assert tree["mask"] == {"handler": "expunge.optim.scores:wagle", "mu": 0.01}
    (fault,) = composed("mask=file")
    assert fault.startswith("trainer.mask.path is not given")
    (fault,) = composed("optimizer=sofia")
    assert "did you mean 'sophia'" in fault


SOPHIA, WAGLE = {"handler": "expunge.optim.sophia:sophia"}, {"handler": "expunge.optim.scores:wagle"}


@pytest.mark.parametrize(
    ("trainer", "message", "hint"),
    [
        (
            {"optimizer": {**SOPHIA, "roh": 1}},
            "trainer.optimizer.roh=1: sophia takes no 'roh'",
            "did you mean 'rho'",
        ),
        (
            {"optimizer": {**SOPHIA, "lr": 1}},
            "trainer.optimizer.lr=1: sophia does not read it",
            "trainer.args.learning_rate=1",
        ),
        (
            {"optimizer": {"rho": 1}},
            "trainer.optimizer has no handler, and its options are given: rho",
            "optimizer=adamw|",
        ),
        ({"optimizer": {"handler": "sofia"}}, "unknown optimizer 'sofia'", "did you mean 'sophia'"),
        ({"optimizer": {"handler": "expunge.optim.sophia:sofia"}}, "unknown name", "did you mean 'Sophia'"),
        (
            {"optimizer": {"handler": "expunge.optim.sophia:Sophia"}},
            "Sophia does not build an optimizer",
            "parameter groups and the arguments",
        ),
        (
            {"optimizer": "sophia"},
            "trainer.optimizer=sophia: this is a choice of the group optimizer",
            "write optimizer=sophia",
        ),
        ({"optimizer": {**SOPHIA, "rules": {"samm": {}}}}, "unknown rule 'samm'", "did you mean 'sam'"),
        (
            {"optimizer": {**SOPHIA, "rules": {"sam": {"rh": 1}}}},
            "trainer.optimizer.rules.sam.rh=1: SAM takes no 'rh'",
            "did you mean 'rho'",
        ),
        (
            {"optimizer": {**SOPHIA, "rules": {"sam": 0.1}}},
            "trainer.optimizer.rules.sam=0.1: a rule is a mapping",
            "sam.OPTION=VALUE",
        ),
        (
            {"optimizer": {**SOPHIA, "rules": "sam"}},
            "trainer.optimizer.rules=sam: rules are given by name",
            "optimizer=sam",
        ),
        (
            {"mask": {**WAGLE, "rato": 0.5}},
            "trainer.mask.rato=0.5: wagle takes no 'rato'",
            "did you mean 'ratio'",
        ),
        (
            {"mask": {**WAGLE, "ratio": 0}},
            "trainer.mask.ratio=0: must be a number above 0 and at most 1",
            "default is 0.8",
        ),
        (
            {"mask": {**WAGLE, "ratio": "half"}},
            "trainer.mask.ratio=half: must be a number above 0 and at most 1",
            "default is 0.8",
        ),
        (
            {"mask": {**WAGLE, "forget": 1}},
            "trainer.mask.forget=1: wagle takes no 'forget'",
            "it takes: mu (0.001), ratio (0.8)",
        ),
        ({"mask": {"handler": "wagl"}}, "unknown mask 'wagl'", "did you mean 'wagle'"),
        (
            {"mask": {"ratio": 0.5}},
            "trainer.mask has no handler, and its options are given: ratio",
            "mask=wagle|",
        ),
        ({"mask": {"handler": "expunge.optim.adamw:adamw"}}, "unknown quantity 'groups'", "weight_P"),
        (
            {"mask": {"path": "/nowhere/m.safetensors"}},
            "trainer.mask.path=/nowhere/m.safetensors: no such file",
            "looked for",
        ),
    ],
)
def test_each_fault(base: Config, trainer: Any, message: str, hint: str) -> None:
    found = found_with(base, trainer)
    assert [fault for fault in found if message in fault and hint in fault], found


def test_short_names_and_disabled_rules_have_no_fault(base: Config) -> None:
    assert (
        found_with(
            base, {"optimizer": {"handler": "sgd", "rules": {"sam": None}}, "mask": {"handler": "random"}}
        )
        == []
    )


def test_a_mask_that_is_read_has_no_options(base: Config, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    (fault,) = found_with(base, {"mask": {"path": str(path), "ratio": 0.5}})
    assert "given with ratio" in fault


def test_two_optimizers_are_refused(base: Config) -> None:
    assert found_with(base, {"optimizer": SOPHIA}, "trainer.args.weight_decay=0.1") == []
    (fault,) = found_with(base, {"optimizer": SOPHIA}, "+trainer.args.optim=adafactor")
    chosen = "trainer.optimizer already chooses the optimizer sophia"
    assert fault.startswith(f"+trainer.args.optim=adafactor: {chosen}")


def test_a_mask_needs_its_rows(base: Config) -> None:
    data = {**base.tree["data"], "retain": {}}
    loss = {"handler": "expunge.methods.grad_ascent:grad_ascent"}
    assert found_with(base, {**loss, "mask": {"handler": "snip"}}, data=data) == []
    (fault,) = found_with(base, {**loss, "mask": WAGLE}, data=data)
    assert fault.startswith("data.retain is empty, and the mask wagle reads it")


def test_finetuning_has_the_retain_side_only() -> None:
    given = ("experiment=finetune/tofu/default", "task_name=x", "eval=null")
    (sam, mask) = composed(*given, "optimizer=sam", "mask=wagle", name="train")
    assert sam.startswith("trainer.optimizer.rules.sam.side=forget: finetuning has no term of that side")
    assert mask.startswith("data.forget is empty, and the mask wagle reads it")
    assert (
        composed(
            *given, "optimizer=sam", "trainer.optimizer.rules.sam.side=null", "mask=magnitude", name="train"
        )
        == []
    )


def test_short_names_are_handlers_that_exist() -> None:
    for table in (OPTIMIZERS, RULES, SCORES, RETAIN_TERMS, SCHEDULES, COMBINATIONS, DATASETS):
        for handler in table.values():
            assert callable(load_handler(read_signature(handler).handler))
