"""From TrainingArguments to accelerate: the process group, mixed precision, and a check of the launcher."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from transformers import TrainingArguments

from expunge.core.errors import Fault, UserError
from expunge.models.parallel import Parallel, refuse_sharding

DDP_SETTINGS = ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
"""Settings of DDP; TrainingArguments names them with the prefix `ddp_`."""
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Variables of `accelerate launch` that ask for weights split over processes -> what splits them."""


def accelerator_of(args: TrainingArguments) -> tuple[Accelerator, Parallel]:
    """Start the process group, if there are several processes, and describe how the work is split.

    Args:
        args: arguments of the training.

    Returns:
        accelerate's object, and the `Parallel` that everything else uses.

    Raises:
        UserError: the launch differs from what the launcher was asked for, or is not supported.
    """
    check_launch(os.environ)
    device = args.device
    chosen = {name: getattr(args, f"ddp_{name}", None) for name in DDP_SETTINGS}
    ddp = DistributedDataParallelKwargs(**{name: item for name, item in chosen.items() if item is not None})
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    check_precision(os.environ, precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        # The step function divides by the counts of the whole step; accelerate must not divide again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[ddp],
    )
    refuse_sharding(accelerator.distributed_type.name)
    return accelerator, Parallel.here(device)


def check_precision(environment: Mapping[str, str], precision: str) -> None:
    """Compare the precision that the launcher was asked for with that of the training.

    Args:
        environment: environment variables of this process.
        precision: no, bf16 or fp16, by the model's dtype and `trainer.args`.

    Raises:
        UserError: the launcher was asked for another one than no.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", "none", precision):
        raise UserError(
            f"the launcher asks for mixed_precision={asked}, but this training computes with {precision}",
            "choose it with model.model_args.torch_dtype (bfloat16, float16 or float32), and leave"
            " mixed_precision out of the launcher's configuration",
        )


def check_launch(environment: Mapping[str, str]) -> None:
    """Compare what the launcher was asked for with what it started.

    Args:
        environment: environment variables of this process.

    Raises:
        UserError: the launcher was asked for sharded weights, or for more processes than there are.
    """
    faults = [
        Fault(
            f"the launcher asks for {what} ({name}), which splits the weights over processes",
            "this version trains in one process or under DDP: use `torchrun --nproc_per_node N`",
        )
        for name, what in SHARDING.items()
        if environment.get(name, "false").lower() in ("true", "1")
    ]
    if faults:
        raise UserError.of(faults)
    asked, here = processes_asked(_parents_command()), int(environment.get("WORLD_SIZE", "1"))
    if asked is not None and here == 1 and asked > 1:
        raise UserError(
            f"accelerate launch was asked for {asked} processes but started one: on CPUs it needs mpirun",
            f"use `torchrun --nproc_per_node {asked} ...`, or give num_processes: 1",
        )


def processes_asked(command: Sequence[str]) -> int | None:
    """The number of processes that the words of `accelerate launch ...` ask for; None for other commands."""
    programs = {word.rpartition("/")[2] for word in command}
    if "launch" not in command or not {"accelerate", "accelerate.commands.accelerate_cli"} & programs:
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    given, _ = launch_command_parser().parse_known_args(list(command[command.index("launch") + 1 :]))
    if given.num_processes is not None:
        return int(given.num_processes)
    config = Path(given.config_file or default_config_file)
    return int(load_config_from_file(str(config)).num_processes) if config.is_file() else None


def _parents_command() -> Sequence[str]:
    """The words of the command that started this process; empty if that is unknown."""
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return ()
    return shlex.split(words[0]) if len(words) == 1 else words
