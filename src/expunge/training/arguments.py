"""From `trainer.args` to transformers' TrainingArguments, with warm-up counted in epochs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from expunge.config.trainer_args import KEY, check_together, check_values
from expunge.config.training_fields import REFUSED
from expunge.core.binding import Binder
from expunge.core.errors import MissingExtraError, UserError
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
# YAML reads an unquoted `no` as false.
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")
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
    given = {**DEFAULTS, **({} if seed is None else {"seed": seed}), **args}
    binder = Binder()
    check_values(binder, KEY, given)
    check_together(binder, KEY, given)
    binder.raise_found()
    known = {field.name for field in fields(TrainingArguments) if field.init}
    given = {name: value for name, value in given.items() if name not in REFUSED}
    for name in STRATEGIES:
        if given.get(name) is False:
            given[name] = "no"
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
        # This starts the process group.
        with runtime.meeting():
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


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
