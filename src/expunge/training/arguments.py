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

# The training loop builds its batches itself: nothing may be dropped from them for not being an argument of
# the model.
FIXED: dict[str, Any] = {"remove_unused_columns": False, "label_names": []}
# A diverging loss is a result in unlearning; transformers would replace it in the log by the average so far.
# No parameter is left out of a forward pass, so ranks need not search the graph for some each time.
DEFAULTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,
    "report_to": "none",
    "ddp_find_unused_parameters": False,
}
OWN_KEYS = ("warmup_epochs",)
# Values of `report_to` that an extra of the same name brings.
LOGGERS = ("tensorboard", "wandb", "trackio")
# Old name -> new name, wherever the installed transformers knows the new one.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def training_arguments(
    args: Mapping[str, Any], output_dir: Path | str, n_examples: int, seed: int | None = None
) -> TrainingArguments:
    """Build the arguments of a training run.

    Args:
        args: the keys of `trainer.args`: TrainingArguments' own, and `warmup_epochs` (a float: epochs of
            linear warm-up, translated to optimizer steps by the batch over all ranks).
        output_dir: the run's folder.
        n_examples: rows of the training set, which say how many steps an epoch has.
        seed: seed of the run, unless `args` has one.

    Returns:
        TrainingArguments with `warmup_steps` set.

    Raises:
        UserError: an unknown key or a value that cannot be; all faults together.
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
        # Only told so do several processes on CPUs find each other, and does bf16 pass the check for a GPU.
        given.setdefault("use_cpu", True)
    for name in LOGGERS:
        if name in _listed(given["report_to"]) and importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, name, f"trainer.args.report_to={name}")
    try:
        built = TrainingArguments(**{**given, **FIXED, "output_dir": str(output_dir)})
    except (ValueError, TypeError) as error:
        raise UserError(
            f"trainer.args cannot be used: {error}", "mend the key that the message names"
        ) from error
    if warmup_epochs:
        built.warmup_steps = math.ceil(float(warmup_epochs) * steps_per_epoch(n_examples, built))
    return built


def steps_per_epoch(n_examples: int, args: TrainingArguments) -> int:
    """Optimizer steps of one epoch: rows over rows a step, on all ranks; a short last step counts."""
    width: int = args.per_device_train_batch_size * args.world_size
    micro_batches: int = n_examples // width if args.dataloader_drop_last else math.ceil(n_examples / width)
    return max(1, math.ceil(micro_batches / args.gradient_accumulation_steps))


def _value_faults(args: Mapping[str, Any]) -> list[Fault]:
    """Values that no run can have, each with the key as typed."""
    faults: list[Fault] = []
    for key in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if key in args and not _number(args[key]) > 0:
            faults.append(Fault(f"trainer.args.{key} is {args[key]!r}", "give a number above 0"))
    if (
        "num_train_epochs" in args
        and not _number(args["num_train_epochs"]) > 0
        and not _number(args.get("max_steps", -1)) > 0
    ):
        faults.append(
            Fault(f"trainer.args.num_train_epochs is {args['num_train_epochs']!r}", "give a number above 0")
        )
    for key in ("warmup_epochs", "max_grad_norm", "weight_decay"):
        if args.get(key) is not None and not _number(args[key]) >= 0:
            faults.append(Fault(f"trainer.args.{key} is {args[key]!r}", "give 0 or more"))
    return faults


def _number(value: Any) -> float:
    """The value as a number; NaN, which no comparison lets pass, where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
