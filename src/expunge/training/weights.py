"""Read and write weights, optimizer and scheduler in the folder of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from expunge.core.errors import UserError
from expunge.models.adapters import NAME, is_adapted
from expunge.models.outputs import unwrapped

ADAPTER_FILE = "adapter_model.safetensors"
WEIGHT_FILES = "model*.safetensors"
OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE = "optimizer.pt", "scheduler.pt", "scaler.pt"


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into a model: all of them, or those of its adapter.

    Args:
        model: as it was when the run began, wrapped or not.
        folder: written by `Parallel.save`.

    Raises:
        UserError: the weights do not fit this model.
    """
    inner = cast(Any, unwrapped(model))
    if is_adapted(inner):
        from peft import set_peft_model_state_dict

        weights = load_file(folder / ADAPTER_FILE)
        result: Any = set_peft_model_state_dict(inner, weights, adapter_name=NAME)
        # Its "missing" keys are the weights of the base model.
        missing, unexpected = [], list(result.unexpected_keys)
    else:
        tensors = {
            key: value for path in sorted(folder.glob(WEIGHT_FILES)) for key, value in load_file(path).items()
        }
        result = inner.load_state_dict(tensors, strict=False)
        missing = [key for key in result.missing_keys if key not in _tied(inner, tensors.keys())]
        unexpected = list(result.unexpected_keys)
    if missing or unexpected:
        raise UserError(
            f"the weights of {folder} do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}",
            "resume with the model that the run started with",
        )


def _tied(model: nn.Module, loaded: Any) -> set[str]:
    """Names of weights that share memory with a loaded weight; only one of their names is saved."""
    named = dict(model.named_parameters(remove_duplicate=False))
    there = {id(named[key]) for key in loaded if key in named}
    return {key for key, parameter in named.items() if id(parameter) in there}


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any, scaler: Any) -> None:
    """Write the states of optimizer, scheduler and scaler; they can be read with `weights_only`."""
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
    torch.save(scheduler.state_dict(), folder / SCHEDULER_FILE)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / SCALER_FILE)


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any, scaler: Any) -> None:
    """Read back what `save_optimizer` wrote; tensors move to the devices of their parameters."""
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True))
    scheduler.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
    if scaler is not None and (folder / SCALER_FILE).is_file():
        scaler.load_state_dict(torch.load(folder / SCALER_FILE, weights_only=True))
