"""Read and write weights, optimizer and scheduler in the folder of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as write_shards

from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.lm import runtime
from expunge.models.adapters import NAME, is_adapted
from expunge.models.outputs import unwrapped
from expunge.models.parallel import Parallel, each_once

ADAPTER_FILE = "adapter_model.safetensors"
WEIGHT_FILES = "model*.safetensors"
OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE = "optimizer.pt", "scheduler.pt", "scaler.pt"
WEIGHT_SHARDS, OPTIMIZER_SHARDS, OPTIMIZER_SETTINGS = "weights", "optimizer", "optimizer.json"


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into a model: all of them, or those of its adapter.

    Args:
        model: as it was when the run began, wrapped or not, with whole or split weights.
        folder: written by `Parallel.save` or `save_shards`.

    Raises:
        UserError: the weights do not fit this model.
    """
    inner = cast(Any, unwrapped(model))
    if (folder / WEIGHT_SHARDS).is_dir():
        weights = each_once(inner)
        _read_shards(folder / WEIGHT_SHARDS, weights)
        set_model_state_dict(inner, weights, options=replace(_options(inner), strict=False))
        return
    adapter = is_adapted(inner)
    files = [folder / ADAPTER_FILE] if adapter else sorted(folder.glob(WEIGHT_FILES))
    tensors: dict[str, Any] = {key: value for path in files for key, value in load_file(path).items()}
    if Parallel.of(inner).sharded:
        if adapter:
            raise _not_sharded(folder)
        options = StateDictOptions(full_state_dict=True, strict=False)
        result: Any = set_model_state_dict(inner, tensors, options=options)
    elif adapter:
        from peft import set_peft_model_state_dict

        result = set_peft_model_state_dict(inner, tensors, adapter_name=NAME)
    else:
        result = inner.load_state_dict(tensors, strict=False)
    # The "missing" keys of an adapter are the weights of the base model.
    tied = set() if adapter else _tied(inner, tensors.keys())
    missing = [] if adapter else [key for key in result.missing_keys if key not in tied]
    unexpected = list(result.unexpected_keys)
    if missing or unexpected:
        raise UserError(
            f"the weights of {folder} do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}",
            "resume with the model that the run started with",
        )


def save_shards(model: nn.Module, folder: Path) -> None:
    """Write split weights as safetensors, each process its part; all processes call this."""
    inner = unwrapped(model)
    _write_shards(folder / WEIGHT_SHARDS, each_once(inner))


def _options(model: nn.Module) -> StateDictOptions:
    """Names without the wrappers' prefixes; of a model with an adapter only what is trained."""
    return StateDictOptions(ignore_frozen_params=is_adapted(model), flatten_optimizer_state_dict=True)


def _write_shards(folder: Path, tensors: Mapping[str, Any]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    write_shards(dict(tensors), storage_writer=writer, no_dist=runtime.world_size() == 1)


def _read_shards(folder: Path, tensors: dict[str, Any]) -> None:
    """Read values into tensors, whole or split, whatever the number of processes that wrote them."""
    try:
        load_shards(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=runtime.world_size() == 1,
        )
    except CheckpointException as error:
        raise UserError(
            f"the values in {folder} do not fit: {error}", "resume with the model that the run started with"
        ) from error


def _not_sharded(folder: Path) -> UserError:
    return UserError(
        f"{folder} was written by a run with whole weights, this run splits them",
        "resume with parallel=ddp or in one process, or start again with overwrite=true",
    )


def _tied(model: nn.Module, loaded: Any) -> set[str]:
    """Names of weights that share memory with a loaded weight; only one of their names is saved."""
    named = dict(model.named_parameters(remove_duplicate=False))
    there = {id(named[key]) for key in loaded if key in named}
    return {key for key, parameter in named.items() if id(parameter) in there}


def save_optimizer(model: nn.Module, folder: Path, optimizer: Any, *, writes: bool) -> None:
    """Write the state of the optimizer; all processes call this.

    The state of whole weights is one file that can be read with `weights_only`. The state of split weights is
    safetensors, each process its part, and the settings of its parameter groups are JSON.
    """
    if not Parallel.of(model).sharded:
        if writes:
            torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
        return
    state = get_optimizer_state_dict(model, _inner(optimizer), options=_options(model))
    _write_shards(folder / OPTIMIZER_SHARDS, {key: item for key, item in state.items() if _is_tensor(item)})
    if writes:
        rest = {key: item for key, item in state.items() if not _is_tensor(item)}
        write_json(folder / OPTIMIZER_SETTINGS, rest)


def load_optimizer(model: nn.Module, folder: Path, optimizer: Any) -> None:
    """Read back what `save_optimizer` wrote, also with another number of processes.

    Raises:
        UserError: the weights are split now, and were whole when the checkpoint was written.
    """
    if (folder / OPTIMIZER_SHARDS).is_dir():
        state = get_optimizer_state_dict(model, _inner(optimizer), options=_options(model))
        tensors = {key: item for key, item in state.items() if _is_tensor(item)}
        _read_shards(folder / OPTIMIZER_SHARDS, tensors)
        settings: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item
            for key, item in read_json(folder / OPTIMIZER_SETTINGS).items()
        }
        set_optimizer_state_dict(
            model, _inner(optimizer), {**state, **settings, **tensors}, options=_options(model)
        )
    elif Parallel.of(model).sharded:
        raise _not_sharded(folder)
    else:
        # Tensors move to the devices of their parameters.
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True))


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer without accelerate's wrapper."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))


def _is_tensor(item: Any) -> bool:
    return isinstance(item, torch.Tensor)


def save_schedule(folder: Path, scheduler: Any, scaler: Any) -> None:
    """Write the states of scheduler and scaler; they can be read with `weights_only`."""
    torch.save(scheduler.state_dict(), folder / SCHEDULER_FILE)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / SCALER_FILE)


def load_schedule(folder: Path, scheduler: Any, scaler: Any) -> None:
    """Read back what `save_schedule` wrote."""
    scheduler.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
    if scaler is not None and (folder / SCALER_FILE).is_file():
        scaler.load_state_dict(torch.load(folder / SCALER_FILE, weights_only=True))
