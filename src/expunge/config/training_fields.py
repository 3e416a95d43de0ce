"""Every field of transformers' TrainingArguments: honoured, without effect, or refused; its values.

Types come from the annotations of the installed version; this table adds ranges and choices. A test compares
it with the installed version, so that no field is ignored silently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.core.errors import Fault


@dataclass(frozen=True)
class Refused:
    """A field for which only some values are accepted.

    Attributes:
        reason: why other values are refused.
        cure: what to do instead.
        unless: the accepted values; they have no effect.
    """

    reason: str
    cure: str
    unless: tuple[Any, ...] = (None, False, "", "no")


HONOURED = frozenset(
    [
        "output_dir",
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "warmup_ratio",
        "optim",
        "optim_args",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim_target_modules",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "bf16",
        "fp16",
        "tf32",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "neftune_noise_alpha",
        "torch_empty_cache_steps",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "save_only_model",
        "save_strategy",
        "save_steps",
        "save_on_each_node",
        "save_total_limit",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "restore_callback_states_from_checkpoint",
        "full_determinism",
        "seed",
        "data_seed",
        "use_cpu",
        "dataloader_drop_last",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "debug",
        "do_eval",
        "resume_from_checkpoint",
        "local_rank",
    ]
)
"""Read by the training loop, or by the public parts of transformers and accelerate that it calls."""

_OWN_EVALUATION = "models are evaluated by the suites under `eval`, which have their own settings"
_OWN_MEANS = "every mean is over the whole step, on all ranks"
NO_EFFECT = {
    "do_train": "the verb decides",
    "do_predict": "the verb decides",
    "per_device_eval_batch_size": _OWN_EVALUATION,
    "bf16_full_eval": "a model is evaluated in its compute dtype",
    "fp16_full_eval": "a model is evaluated in its compute dtype",
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "include_inputs_for_metrics": _OWN_EVALUATION,
    "remove_unused_columns": "batches hold only what the losses read",
    "label_names": "batches hold only what the losses read",
    "group_by_length": "rows come in a random order drawn from (seed, epoch)",
    "logging_dir": "TensorBoard's files lie in the run folder",
    "length_column_name": "rows come in a random order drawn from (seed, epoch)",
    "average_tokens_across_devices": _OWN_MEANS,
    "skip_memory_metrics": "every record has the peak memory",
    "use_cache": "training builds no cache; the model's own setting is kept",
    "hub_strategy": "nothing is pushed",
    "hub_always_push": "nothing is pushed",
}
"""Accepted with any value, because the field's files set them. They have no effect, for the reason given."""

SHIPPED: dict[str, tuple[Any, ...]] = {
    "do_train": (True,),
    "remove_unused_columns": (False,),
    "per_device_eval_batch_size": (16, 64),
}
"""The values of fields without effect in this package's own files: they need no notice."""

_SHARDING = "the engine is chosen by `parallel`, or by the launcher's configuration"
_TORCHRUN = "leave the key out, and give parallel=fsdp2 or parallel=ddp under `torchrun --nproc_per_node N`"
_PUSH = "upload the finished folder with `hf upload`"
REFUSED = {
    "label_smoothing_factor": Refused(
        "no method's loss has label smoothing", "leave the key out", (0, 0.0, None)
    ),
    "train_sampling_strategy": Refused(
        "rows come in a random order drawn from (seed, epoch)", "leave the key out", ("random", None)
    ),
    "torch_compile": Refused(
        "label positions differ between batches, so the model would be compiled again and again",
        "leave the key out",
    ),
    "torch_compile_backend": Refused("torch_compile is not supported", "leave the key out"),
    "torch_compile_mode": Refused("torch_compile is not supported", "leave the key out"),
    "use_liger_kernel": Refused(
        "its fused cross entropy hides the logits that losses read", "leave the key out"
    ),
    "liger_kernel_config": Refused("use_liger_kernel is not supported", "leave the key out"),
    "auto_find_batch_size": Refused(
        "it would change the rows of a step",
        "give per_device_train_batch_size and gradient_accumulation_steps",
    ),
    "enable_jit_checkpoint": Refused(
        "checkpoints are written only at steps or epochs", "use save_strategy=steps and save_steps"
    ),
    "push_to_hub": Refused("nothing is pushed while training", _PUSH),
    "hub_token": Refused("nothing is pushed while training", _PUSH),
    "hub_private_repo": Refused("nothing is pushed while training", _PUSH),
    "hub_model_id": Refused("nothing is pushed while training", _PUSH),
    "hub_revision": Refused("nothing is pushed while training", _PUSH),
    "ignore_data_skip": Refused(
        "a resumed run continues with the same rows as an uninterrupted run", "leave the key out"
    ),
    "accelerator_config": Refused("this tool distributes the rows to the ranks", "leave the key out"),
    "parallelism_config": Refused(_SHARDING, _TORCHRUN),
    "fsdp": Refused(_SHARDING, _TORCHRUN, (None, False, "", "no", [])),
    "fsdp_config": Refused(_SHARDING, _TORCHRUN),
    "deepspeed": Refused(_SHARDING, _TORCHRUN),
}


OWN = ("warmup_epochs",)
"""Our keys of `trainer.args` beside those of TrainingArguments."""

RANGES: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = (
    (
        "learning_rate num_train_epochs per_device_train_batch_size per_device_eval_batch_size",
        (("Above", 0),),
    ),
    ("gradient_accumulation_steps logging_steps eval_steps save_steps ddp_timeout", (("Above", 0),)),
    ("torch_empty_cache_steps dataloader_prefetch_factor ddp_bucket_cap_mb", (("Above", 0),)),
    ("eval_accumulation_steps", (("Above", 0),)),
    ("warmup_epochs warmup_steps weight_decay max_grad_norm adam_epsilon", (("AtLeast", 0),)),
    ("neftune_noise_alpha eval_delay dataloader_num_workers data_seed", (("AtLeast", 0),)),
    ("seed", (("AtLeast", 0), ("Below", 2**32))),
    ("adam_beta1 adam_beta2", (("AtLeast", 0), ("Below", 1))),
    ("max_steps local_rank save_total_limit", (("AtLeast", -1),)),
)
"""Names of fields that are numbers, and their range (see `core.annotations.RANGES`)."""

_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES: dict[str, tuple[Any, ...]] = {
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
}
"""The values of fields that transformers annotates as strings only."""


def refusals(args: Mapping[str, Any], key: str = "trainer.args") -> list[Fault]:
    """The faults of refused values in `trainer.args`, each with the key as typed.

    Args:
        args: the arguments, with renamed keys already under their new names.
        key: the key of their section.
    """
    return [
        Fault(f"{key}.{name}={args[name]}: {rule.reason}", rule.cure)
        for name, rule in REFUSED.items()
        if name in args and not any(args[name] is one or args[name] == one for one in rule.unless)
    ]


def range_of(name: str) -> tuple[tuple[str, float], ...]:
    """The range of a field; empty if it has none."""
    return next((limits for names, limits in RANGES if name in names.split()), ())


def no_effect(args: Mapping[str, Any], typed: Collection[str]) -> str:
    """One notice of the fields without effect that the user gave; empty if there are none.

    Args:
        args: `trainer.args`.
        typed: the dotted keys on the command line.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in NO_EFFECT.items():
        own = name in args and args[name] not in SHIPPED.get(name, ())
        if name in args and (own or f"trainer.args.{name}" in typed):
            reasons.setdefault(reason, []).append(name)
    listed = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"without effect in trainer.args: {listed}" if listed else ""


def known_fields() -> frozenset[str]:
    """All fields in the table."""
    return HONOURED | NO_EFFECT.keys() | REFUSED.keys()
