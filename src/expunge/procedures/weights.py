"""Arithmetic on saved weights, tensor by tensor; only one file of the written model is in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.core.errors import UserError
from expunge.core.files import atomic_write, read_json, write_json
from expunge.models.location import locate

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BESIDE = ("config.json", "generation_config.json")
"""Files beside the weights that belong to the model; a model with its own code also has `*.py`."""


def negated(theta: Tensor, tuned: Tensor, scale: float) -> Tensor:
    """Compute theta - scale (tuned - theta), in float32 (or float64), rounded once to the dtype of theta.

    Integers and booleans are not trained and are copied. Scale 0 gives `theta` bit for bit.
    """
    if scale == 0 or not theta.is_floating_point():
        return theta
    wide = torch.float64 if torch.float64 in (theta.dtype, tuned.dtype) else torch.float32
    start = theta.to(wide)
    return (start - scale * (tuned.to(wide) - start)).to(theta.dtype)


def tensor_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file for a folder of safetensors; empty if the weights have another format."""
    if (folder / INDEX).is_file():
        return {str(name): str(file) for name, file in read_json(folder / INDEX)["weight_map"].items()}
    if not (folder / SINGLE).is_file():
        return {}
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, read from the file headers."""
    found: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(tensor_files(folder).values())):
        with safe_open(folder / name, framework="pt") as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # no mapping
    return found


def local_folder(model_args: Mapping[str, Any]) -> Path | None:
    """The local folder of the model files: the given one or the hub cache; None for GGUF or without files."""
    place = locate(model_args, "model.model_args")
    folder = place.folder
    if place.gguf_file is not None:
        return None
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        given = {key: model_args.get(key) for key in ("revision", "cache_dir")}
        file = try_to_load_from_cache(place.source, "config.json", **given)
        folder = Path(file).parent if isinstance(file, str) else None
    return folder / str(model_args.get("subfolder") or "") if folder is not None else None


def refuse_quantised(folder: Path) -> None:
    """Refuse quantised weights with a `UserError`, because sums of their codes have no meaning."""
    config = folder / "config.json"
    if config.is_file() and (
        method := (read_json(config).get("quantization_config") or {}).get("quant_method")
    ):
        raise UserError(
            f"{folder} contains quantised weights ({method}), which cannot be subtracted",
            "give the model in full or half precision",
        )


def write_negated(start: Path, tuned: Path, target: Path, scale: float) -> None:
    """Write theta - scale (theta_f - theta) file by file, with the file names and split of the start model.

    Both folders store tied weights in the same way. Config and generation config come from the start model.

    Raises:
        UserError: the folders have different tensors, or a result is not finite (the message names the
            tensor).
    """
    if shapes(start) != shapes(tuned):
        names = sorted(set(shapes(start).items()) ^ set(shapes(tuned).items()))
        raise UserError(
            f"{start} and {tuned} have different tensors, such as {names[0][0]}",
            "give the start model from which the other model was finetuned",
        )
    files, other = tensor_files(start), tensor_files(tuned)
    for name in sorted(set(files.values())):
        tensors = {}
        with safe_open(start / name, framework="pt") as ours:
            for key in ours.keys():  # noqa: SIM118  # no mapping
                with safe_open(tuned / other[key], framework="pt") as theirs:
                    theta = ours.get_tensor(key)
                    tensors[key] = _finite(key, theta, negated(theta, theirs.get_tensor(key), scale), scale)
        atomic_write(target / name, partial(save_file, tensors, metadata={"format": "pt"}))
        del tensors
    if (start / INDEX).is_file():
        write_json(target / INDEX, json.loads((start / INDEX).read_text(encoding="utf-8")))
    for path in [start / name for name in BESIDE] + sorted(start.glob("*.py")):
        if path.is_file():
            atomic_write(target / path.name, partial(shutil.copyfile, path))


def _finite(name: str, theta: Tensor, result: Tensor, scale: float) -> Tensor:
    if theta.is_floating_point() and not torch.isfinite(result).all() and torch.isfinite(theta).all():
        raise UserError(
            f"theta - {scale:g} (theta_f - theta) is not finite in {name}: the finetuning diverged, or the "
            f"result is outside the range of {theta.dtype}",
            "lower trainer.args.learning_rate or procedure.args.scale",
        )
    return result
