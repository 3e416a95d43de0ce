from __future__ import annotations

from typing import Any

import pytest

from expunge.config.aliases import BITSANDBYTES, DROPPED, RENAMED, fit_machine, translate
from expunge.config.location import config_roots
from expunge.config.short_names import DATASETS
from expunge.config.trainer_args import argument_types
from expunge.config.training_fields import OWN, known_fields
from expunge.core.handlers import read_signature


def run(args: dict[str, Any], *typed: str, has: bool = False) -> tuple[dict[str, Any], list[str], list[str]]:
    tree: dict[str, Any] = {"seed": 0, "trainer": {"args": dict(args), "method_args": {}}}
    result = translate(tree, {f"trainer.args.{name}" for name in typed}, config_roots(), has=lambda _: has)
    out = {key: value for key, value in tree["trainer"]["args"].items() if key != "seed"}
    return out, result.notices, [str(fault) for fault in result.faults]


def test_tables_agree_with_the_installed_transformers() -> None:
    names = set(argument_types())
    assert {"learning_rate", "eval_strategy", "warmup_steps"} <= names
    assert not names & (set(RENAMED) | set(DROPPED) | {"warmup_ratio"})
    assert set(RENAMED.values()) <= names


def test_every_field_is_honoured_without_effect_or_refused() -> None:
    assert set(argument_types()) <= {*known_fields(), *OWN}


def test_names_by_ast_are_those_of_the_dataclass() -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    assert set(argument_types()) >= {field.name for field in fields(TrainingArguments) if field.init}


def test_replacement_optimizers_exist() -> None:
    from transformers.training_args import OptimizerNames

    known = {item.value for item in OptimizerNames}
    assert set(BITSANDBYTES.values()) <= known


def test_dataset_names_are_handlers_of_the_data_room() -> None:
    """The context is their only positional parameter."""
    for handler in DATASETS.values():
        assert read_signature(handler).positional == ("context",)


def test_renamed_wins_over_the_yaml_and_loses_to_the_typed() -> None:
    out, notices, _ = run({"eval_strategy": "no", "evaluation_strategy": "steps"}, "evaluation_strategy")
    assert out == {"eval_strategy": "steps"}
    assert len(notices) == 1
    out, notices, _ = run(
        {"eval_strategy": "epoch", "evaluation_strategy": "steps"}, "evaluation_strategy", "eval_strategy"
    )
    assert out == {"eval_strategy": "epoch"}
    assert "is ignored" in notices[0]


@pytest.mark.parametrize(
    "key", ["logging_dir", "group_by_length", "overwrite_output_dir", "save_safetensors"]
)
def test_dropped(key: str) -> None:
    out, notices, faults = run({key: "x", "learning_rate": 1.0})
    assert (out, faults) == ({"learning_rate": 1.0}, [])
    assert key in notices[0]


def test_warmup() -> None:
    assert run({"warmup_ratio": 0.1, "warmup_epochs": 1.0}, "warmup_ratio")[0] == {"warmup_steps": 0.1}
    assert run({"warmup_steps": 7, "warmup_epochs": 1.0}, "warmup_steps")[0] == {"warmup_steps": 7}
    assert run({"warmup_steps": 7, "warmup_epochs": 2}, "warmup_steps", "warmup_epochs")[2]
    assert run({"warmup_ratio": 1.0})[2]
    assert run({"warmup_epochs": 1.0})[0] == {"warmup_epochs": 1.0}


def test_packages_that_are_not_installed() -> None:
    out, notices, _ = run({"optim": "paged_adamw_32bit", "report_to": ["wandb", "none"]})
    assert out == {"optim": "adamw_torch", "report_to": ["none"]}
    assert len(notices) == 2
    assert run({"report_to": "tensorboard"})[0] == {"report_to": "none"}
    (fault,) = run({"report_to": ["wandb", "none"]}, "report_to")[2]
    message, hint = fault.split("\n  -> ")
    assert message == "trainer.args.report_to=wandb needs the package 'wandb', which is not installed"
    assert hint == 'pip install "expunge[wandb]"'
    assert "pip install comet-ml" in run({"report_to": "comet_ml"}, "report_to")[2][0]
    assert run({"optim": "paged_adamw_32bit", "report_to": "tensorboard"}, has=True)[0] == {
        "optim": "paged_adamw_32bit",
        "report_to": "tensorboard",
    }


def test_none_as_text() -> None:
    assert run({"ddp_find_unused_parameters": "None"})[0] == {"ddp_find_unused_parameters": None}


def test_dtype_is_torch_dtype() -> None:
    tree: dict[str, Any] = {"model": {"model_args": {"dtype": "float32", "torch_dtype": "bfloat16"}}}
    assert translate(tree, {"model.model_args.dtype"}, config_roots()).notices
    assert tree["model"]["model_args"] == {"torch_dtype": "float32"}
    tree = {"model": {"model_args": {"dtype": "float32", "torch_dtype": "bfloat16"}}}
    assert translate(tree, {"model.model_args.dtype", "model.model_args.torch_dtype"}, config_roots()).faults


def test_class_names_of_the_field() -> None:
    tree: dict[str, Any] = {
        "trainer": {"handler": "SimNPO", "args": {}},
        "data": {"anchor": "forget", "forget": {"A": {"handler": "QADataset", "args": {}}}},
    }
    assert len(translate(tree, set(), config_roots()).notices) == 2
    assert tree["trainer"]["handler"] == "expunge.methods.simnpo:simnpo"
    assert tree["data"]["forget"]["A"]["handler"] == "expunge.data.datasets:qa"


def test_fit_machine() -> None:
    args, notices = fit_machine(
        {"bf16": True, "fp16": True, "learning_rate": 1.0}, cuda=False, cpu_bf16=False
    )
    assert (args, len(notices)) == ({"learning_rate": 1.0}, 2)
    args, notices = fit_machine({"bf16": True, "tf32": True}, cuda=True, cpu_bf16=False)
    assert (args, notices) == ({"bf16": True, "tf32": True}, [])
    assert fit_machine({"bf16": True}, cuda=False, cpu_bf16=True) == ({"bf16": True}, [])
