"""From `trainer.args` to transformers' TrainingArguments, with warm-up counted in epochs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from expunge.config.training_fields import refusals
from expunge.core.errors import Fault, MissingExtraError, UserError, unknown
from expunge.lm import runtime

# The training loop builds its own batches: all their columns must stay.
FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": []}
# A diverging loss is a result in unlearning; transformers would log the average so far instead.
# Every forward pass uses all parameters, so DDP need not search for unused ones.
DEFAULTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "ddp_find_unused_parameters": False,
}
OWN_KEYS = ("warmup_epochs",)
# Values of `report_to` that need the extra of the same name.
LOGGERS = ("tensorboard", "wandb", "trackio")
# Old name -> new name, used if the installed transformers knows the new one.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def training_arguments(
    args: Mapping[str, Any], output_dir: Path | str, n_examples: int, seed: int | None = None
) -> TrainingArguments:
    """Build the arguments of a training run.

    Args:
        args: the keys of `trainer.args`: those of TrainingArguments, and `warmup_epochs` (a float: epochs of
            linear warm-up, converted to optimizer steps with the batch over all ranks).
        output_dir: the run's folder.
        n_examples: number of rows of the training set, for the steps of an epoch.
        seed: seed of the run, used if `args` has none.

    Returns:
        TrainingArguments with `warmup_steps` set.

    Raises:
        UserError: unknown keys and impossible values; all faults together.
    """
    known = {field.name for field in fields(TrainingArguments) if field.init}
    given = {**DEFAULTS, **({} if seed is None else {"seed": seed}), **args}
    faults = [
        unknown("key in trainer.args", key, sorted({*known, *OWN_KEYS}))
        for key in given
        if key not in known and key not in OWN_KEYS
    ]
    faults += [*_value_faults(given), *refusals(given)]
    if faults:
        raise UserError.of(faults)
    warmup_epochs = given.pop("warmup_epochs", None)
    for old, new in RENAMED.items():
        if new in known and old in given:
            given.setdefault(new, given[old])
            del given[old]
    if runtime.device().type == "cpu":
        # Several processes on CPUs need this to find each other, and bf16 to pass the check for a GPU.
        given.setdefault("use_cpu", True)
    for name in LOGGERS:
        if name in _listed(given["report_to"]) and importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"trainer.args.report_to={name}")
    try:
        built = TrainingArguments(**{**given, **FIXED, "output_dir": str(output_dir)})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"transformers refuses trainer.args: {error}", "correct the key that the message names"
        ) from error
    if warmup_epochs:
        built.warmup_steps = math.ceil(float(warmup_epochs) * steps_per_epoch(n_examples, built))
    return built


def steps_per_epoch(n_examples: int, args: TrainingArguments) -> int:
    """Optimizer steps of one epoch: rows / rows per step on all ranks, rounded up."""
    width: int = args.per_device_train_batch_size * args.world_size
    micro_batches: int = n_examples // width if args.dataloader_drop_last else math.ceil(n_examples / width)
    return max(1, math.ceil(micro_batches / args.gradient_accumulation_steps))


def _value_faults(args: Mapping[str, Any]) -> list[Fault]:
    """Values that no run can have, each with the key as typed."""
    above_0 = ["learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"]
    if not _number(args.get("max_steps", -1)) > 0:
        above_0.append("num_train_epochs")
    faults = [
        Fault(f"trainer.args.{key}={args[key]}", "give a number above 0")
        for key in above_0
        if key in args and not _number(args[key]) > 0
    ]
    return faults + [
        Fault(f"trainer.args.{key}={args[key]}", "give 0 or more")
        for key in ("warmup_epochs", "max_grad_norm", "weight_decay")
        if args.get(key) is not None and not _number(args[key]) >= 0
    ]


def _number(value: Any) -> float:
    """The value as a number; NaN, for which every comparison is false, if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
