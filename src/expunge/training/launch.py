"""From TrainingArguments to accelerate: the process group, mixed precision, and a check of the launcher."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    fsdp2_prepare_model,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from expunge.core.engine import UNSHARDED, Engine, engine_of
from expunge.core.errors import UserError, unknown
from expunge.lm import runtime
from expunge.models.parallel import Parallel

logger = logging.getLogger(__name__)

DDP_SETTINGS = ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
"""Settings of DDP; TrainingArguments names them with the prefix `ddp_`."""
PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
"""accelerate's names for one process and for DDP."""


def accelerator_of(args: TrainingArguments, engine: Engine | None = None) -> tuple[Accelerator, Parallel]:
    """Start the process group, if there are several processes, and describe how the work is split.

    Args:
        args: arguments of the training.
        engine: how several processes share the run; None = what the launcher asks for.

    Returns:
        accelerate's object, and the `Parallel` that everything else uses.

    Raises:
        UserError: the launch differs from what was asked for, or is not supported.
    """
    engine = engine_of({}, os.environ) if engine is None else engine
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
        fsdp_plugin=_plugin(engine, precision),
    )
    return accelerator, _checked(engine, accelerator, device)


def parallel_of(engine: Engine, dtype: str) -> Parallel:
    """How the work of an evaluation is split over the processes that have met.

    Args:
        engine: how several processes share the run.
        dtype: in which the model computes; after a training, that of the training.

    Raises:
        UserError: what came up is not the engine that was asked for.
    """
    if not engine.sharded or runtime.world_size() == 1:
        return Parallel.here()
    where = runtime.device()
    # After a training, accelerate keeps the state of its first object.
    accelerator = Accelerator(
        cpu=where.type == "cpu", fsdp_plugin=_plugin(engine, "bf16" if dtype == "bfloat16" else "no")
    )
    return _checked(engine, accelerator, where)


def _plugin(engine: Engine, precision: str) -> FullyShardedDataParallelPlugin | None:
    """Accelerate's settings of FSDP2; None for other engines, and for one process."""
    if not engine.sharded or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    half = torch.bfloat16 if precision == "bf16" else None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=engine.reshard_after_forward,
        cpu_offload=engine.cpu_offload,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=None if engine.layers is None else list(engine.layers),
        cpu_ram_efficient_loading=False,
        # Gradients are added up over the processes in float32, as in DDP.
        mixed_precision_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32),
    )


def _checked(engine: Engine, accelerator: Accelerator, device: torch.device) -> Parallel:
    """The `Parallel` of what accelerate started, if that is what was asked for.

    Raises:
        UserError: it is something else.
    """
    got, whole = accelerator.distributed_type.name, Parallel.here(device)
    if engine.sharded and got == "FSDP" and accelerator.is_fsdp2:
        return replace(whole, kind="fsdp2", split=partial(_split, accelerator, engine.layers))
    if engine.sharded and whole.dp_size > 1:
        raise UserError(
            f"parallel={engine.kind} was asked for, but accelerate started {got}: FSDP2 needs GPUs",
            f"{UNSHARDED}; on CPUs, DDP gives the same numbers",
        )
    if got not in PLAIN:
        raise UserError(f"parallel={engine.kind} was asked for, but accelerate started {got}", UNSHARDED)
    if engine.sharded:
        logger.warning("parallel=%s with one process: the weights are not split", engine.kind)
    return whole


def _split(accelerator: Accelerator, layers: Sequence[str] | None, model: nn.Module) -> None:
    """Split the weights of a model in place.

    Raises:
        UserError: a layer is not one of the model's.
    """
    classes = sorted({type(module).__name__ for module in model.modules()})
    faults = [unknown("parallel.layers", name, classes) for name in layers or () if name not in classes]
    if faults:
        raise UserError.of(faults)
    fsdp2_prepare_model(accelerator, model)


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
    """Compare the number of processes that the launcher was asked for with the number that it started.

    Args:
        environment: environment variables of this process.

    Raises:
        UserError: the launcher was asked for more processes than there are.
    """
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
