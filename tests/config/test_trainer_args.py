"""`trainer.args`: validation finds every value that the run would refuse, and names it as typed."""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from composed import compose_config
from expunge.config.aliases import fit_machine
from expunge.config.location import config_roots
from expunge.config.trainer_args import argument_types
from expunge.config.training_fields import NO_EFFECT, RANGES, SHIPPED
from expunge.config.validate import checked
from expunge.core.config import Config
from expunge.training.arguments import training_arguments

KEY = "trainer.args"


@pytest.fixture(scope="module")
def base() -> Config:
    """An unlearning run with an evaluation suite; simple values are set in copies of its tree."""
    return compose_config("unlearn", ["experiment=unlearn/mini/default", "task_name=x", "trainer=GradAscent"])


def faults_of(base: Config, **args: Any) -> list[str]:
    tree = copy.deepcopy(dict(base.tree))
    tree["trainer"]["args"] |= args
    return [str(fault) for fault in checked(Config(tree, base.overrides)).faults]


NUMBERS: list[tuple[str, Any, str]] = [
    ("save_total_limit", "abc", "a whole number"),
    ("adam_beta1", 2, "a number of at least 0 and below 1"),
    ("adam_beta2", -0.1, "a number of at least 0 and below 1"),
    ("adam_epsilon", "x", "a number of at least 0"),
    ("dataloader_num_workers", -1, "a whole number of at least 0"),
    ("max_steps", 1.5, "a whole number of at least -1"),
    ("max_steps", True, "a whole number"),
    ("data_seed", "abc", "a whole number"),
    ("eval_delay", "abc", "a number of at least 0"),
    ("neftune_noise_alpha", -1, "a number of at least 0"),
    ("neftune_noise_alpha", "abc", "a number of at least 0"),
    ("max_grad_norm", math.nan, "a finite number of at least 0"),
    ("learning_rate", math.inf, "a finite number above 0"),
    ("learning_rate", [1], "a number above 0"),
    ("learning_rate", {"a": 1}, "a number above 0"),
    ("learning_rate", None, "a number above 0"),
    ("learning_rate", True, "a number above 0"),
    ("warmup_steps", -1, "a number of at least 0"),
    ("warmup_epochs", "x", "a number of at least 0"),
    ("weight_decay", None, "a number of at least 0"),
    ("per_device_train_batch_size", 4.0, "a whole number above 0"),
    ("torch_empty_cache_steps", 0, "a whole number above 0"),
    ("ddp_timeout", "long", "a whole number above 0"),
    ("logging_steps", 0, "a number above 0"),
]
WORDS: list[tuple[dict[str, Any], str, str]] = [
    ({"report_to": "tensorbord"}, "report_to=tensorbord: must be one of", "did you mean 'tensorboard'?"),
    ({"report_to": ["wandb", "none"]}, "report_to=none: must be one of", ""),
    ({"log_level": "loud"}, "log_level=loud: must be one of 'detail'", ""),
    ({"log_level": "warn"}, "log_level=warn: must be one of", "did you mean 'warning'?"),
    ({"debug": "foo"}, "debug=foo: must be one of 'underflow_overflow'", ""),
    ({"ddp_backend": "foo"}, "ddp_backend=foo: must be one of 'nccl'", ""),
    ({"eval_strategy": None}, "eval_strategy=null: must be one of", ""),
    ({"run_name": ["a"]}, "run_name=['a']: must be a string", ""),
    ({"lr_scheduler_kwargs": "0.1"}, "lr_scheduler_kwargs=0.1: must be a section of keys and values", ""),
    ({"optim_args": "momentum"}, "optim_args=momentum: must be a list of name=value", ""),
]
TOGETHER: list[tuple[dict[str, Any], str, str]] = [
    (
        {"lr_scheduler_type": "warmup_stable_decay"},
        "lr_scheduler_kwargs.num_decay_steps is not given",
        "add trainer.args.lr_scheduler_kwargs.num_decay_steps=VALUE",
    ),
    (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "lr_scheduler_type=cosine_with_min_lr needs min_lr or min_lr_rate, and none is given",
        "lr_scheduler_kwargs.min_lr_rate=0.1",
    ),
    (
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0, "min_lr_rate": 0.1}},
        "both are given",
        "",
    ),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}},
        "lr_scheduler_kwargs.num_cycle=2: get_cosine_schedule_with_warmup takes no 'num_cycle'",
        "did you mean 'num_cycles'?",
    ),
    (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "many"}},
        "lr_scheduler_kwargs.num_cycles=many: must be a number",
        "",
    ),
    (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
        "get_constant_schedule takes no 'num_cycles'",
        "it takes: nothing",
    ),
    (
        {
            "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patienc": 2},
            "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "forget_Q_A_Prob",
        },
        "ReduceLROnPlateau takes no 'patienc'",
        "did you mean 'patience'?",
    ),
    (
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 2, "decay_type": "quick"},
        },
        "decay_type=quick: must be one of 'linear', 'cosine', '1-sqrt'",
        "",
    ),
    (
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        "reduce_lr_on_plateau follows a metric, and the run is not evaluated",
        "add trainer.args.eval_strategy=steps",
    ),
    (
        {"optim": "galore_adamw", "optim_target_modules": "all-linear"},
        "optim=galore_adamw needs the package 'galore_torch'",
        "pip install galore-torch",
    ),
    (
        {"optim": "galore_adamw"},
        "optim=galore_adamw needs optim_target_modules",
        "optim_target_modules=all-linear",
    ),
    ({"optim": "schedule_free_adamw"}, "needs the package 'schedulefree'", "pip install schedulefree"),
    ({"optim": "lion_8bit"}, "needs the package 'bitsandbytes'", 'pip install "expunge[quantized]"'),
    ({"optim": "lomo"}, "optim=lomo: lomo updates the model in its own loop", "choose another one"),
    ({"save_strategy": "best"}, "save_strategy=best: it needs a metric", "metric_for_best_model"),
    (
        {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "epoch",
         "metric_for_best_model": "forget_Q_A_Prob"},
        "load_best_model_at_end=True: the save and eval strategy differ",
        "save_strategy=best",
    ),
    (
        {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps",
         "save_steps": 3, "eval_steps": 2, "metric_for_best_model": "forget_Q_A_Prob"},
        "save_steps=3 and eval_steps=2, 3 is not a multiple of 2",
        "give trainer.args.save_steps=2",
    ),
    (
        {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"},
        "load_best_model_at_end=True: it needs metric_for_best_model",
        "forget_Q_A_Prob",
    ),
    (
        {"eval_strategy": "epoch", "metric_for_best_model": "forget_Q_A_Pro"},
        "metric_for_best_model=forget_Q_A_Pro: unknown metric",
        "did you mean 'forget_Q_A_Prob'?",
    ),
    (
        {"dataloader_prefetch_factor": 2},
        "dataloader_prefetch_factor=2: it is for worker processes",
        "dataloader_num_workers=2",
    ),
    ({"dataloader_persistent_workers": True}, "it is for worker processes, and there are none", ""),
    ({"fp16": True, "bf16": True}, "fp16=True: bf16=true is given as well", "give one of the two"),
    (
        {"eval_strategy": "steps", "eval_steps": 2.5},
        "eval_steps=2.5: steps above 1 are whole",
        "for example 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), NUMBERS)
def test_numbers(base: Config, name: str, value: Any, words: str) -> None:
    (found,) = faults_of(base, **{name: value})
    assert f"{KEY}.{name}={'null' if value is None else value}: must be {words}" in found


@pytest.mark.parametrize(("args", "message", "hint"), [*WORDS, *TOGETHER])
def test_choices_and_values_that_depend_on_each_other(
    base: Config, args: dict[str, Any], message: str, hint: str
) -> None:
    (found,) = [fault for fault in faults_of(base, **args) if message in fault]
    assert hint in found
    assert found.startswith(f"{KEY}.")


def test_all_at_once(base: Config) -> None:
    found = faults_of(base, **{name: value for name, value, _ in reversed(NUMBERS)}, log_level="loud")
    assert len(found) == len({name for name, _, _ in NUMBERS}) + 1


def test_the_evaluation_that_is_asked_for_has_a_suite(base: Config) -> None:
    tree = copy.deepcopy(dict(base.tree))
    tree["eval"] = {}
    tree["trainer"]["args"]["eval_on_start"] = True
    (found,) = [str(fault) for fault in checked(Config(tree)).faults]
    assert "trainer.args.eval_on_start=True: no evaluation suite is configured" in found


def test_drop_last_needs_a_whole_batch(tofu_root: Path) -> None:
    """forget10 has 5 rows here."""
    data = ("experiment=unlearn/tofu/default", "task_name=x", "eval=null", f"paths.data_root={tofu_root}")
    base = compose_config("unlearn", [*data, f"{KEY}.report_to=none"])
    (found,) = faults_of(base, dataloader_drop_last=True)
    assert "it drops all 5 rows, because one batch has 8" in found
    assert faults_of(base, dataloader_drop_last=True, per_device_train_batch_size=5) == []


def test_every_number_of_transformers_has_a_range() -> None:
    def is_number(hint: Any) -> bool:
        return hint.kind in ("int", "float") or (hint.kind == "union" and any(map(is_number, hint.args)))

    listed = {name for names, _ in RANGES for name in names.split()}
    assert {name for name, hint in argument_types().items() if is_number(hint)} - {
        "label_smoothing_factor"
    } == listed


STRANGE = ("abc", [1], {"a": 1}, -1, math.nan, None, False, True, 0, [], "", 2.5)


@pytest.mark.parametrize("value", STRANGE, ids=map(repr, STRANGE))
def test_what_validation_accepts_the_run_accepts(base: Config, tmp_path: Path, value: Any) -> None:
    """Each field with a strange value: no traceback, and either a fault or arguments that can be built."""
    wrong: list[str] = []
    for field in fields(TrainingArguments):
        if not field.init or field.name in ("output_dir", "resume_from_checkpoint"):
            continue
        if faults_of(base, **{field.name: value}):
            continue
        given = {**base.section(KEY), field.name: value}
        args, _ = fit_machine(given, cuda=False, cpu_bf16=True)
        try:
            training_arguments(args, tmp_path, 40, seed=0)
        except Exception as error:
            wrong.append(f"{field.name}={value!r}: {error!r}")
    assert wrong == []


def test_values_of_shipped_files_without_effect_give_no_notice(base: Config) -> None:
    """`SHIPPED` has exactly the values in this package's own files."""
    import yaml

    found: dict[str, set[Any]] = {}
    for root in config_roots():
        for path in root.rglob("*.yaml"):
            tree = yaml.safe_load(path.read_text().replace("${", "$"))
            pending = [tree]
            while pending:
                node = pending.pop()
                if isinstance(node, dict):
                    pending += node.values()
                    for name in NO_EFFECT.keys() & node.keys():
                        found.setdefault(name, set()).add(node[name])
    assert {name: set(values) for name, values in SHIPPED.items()} == found
    assert not [notice for notice in base.notices if "without effect" in notice]


def test_one_notice_names_all_arguments_without_effect() -> None:
    typed = (
        f"{KEY}.per_device_eval_batch_size=64",
        f"{KEY}.prediction_loss_only=true",
        f"{KEY}.use_cache=true",
    )
    cfg = compose_config("unlearn", ["experiment=unlearn/mini/default", "task_name=x", *typed])
    (notice,) = [notice for notice in cfg.notices if "without effect" in notice]
    assert "per_device_eval_batch_size, prediction_loss_only (models are evaluated by the suites" in notice
    assert "use_cache (training builds no cache" in notice
