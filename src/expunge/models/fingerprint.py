"""Fingerprints of model weights: from files, from name and revision on the hub, or from tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from expunge.core.fingerprint import LENGTH, fingerprint, fingerprint_files
from expunge.data import mini
from expunge.lm import runtime
from expunge.models.adapter_folder import BaseRecord, is_adapter_folder

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
NOT_WEIGHTS = ("optimizer", "scheduler", "rng_state", "training_args", "trainer_state", "scaler")
CONFIGURATION = ("config.json", "adapter_config.json", "quantization_config.json")


def model_fingerprint(model: str | Path | nn.Module, revision: str | None = None) -> str:
    """Identify the weights of a model.

    Args:
        model: one of: a folder (hash of weights and configuration; an adapter folder includes its base); a
            hub name (hash of name, revision, and commit if it is in the cache); a model in memory (hash of
            names, dtypes, shapes and bytes of its tensors).
        revision: revision of a hub name.

    Returns:
        16 hex digits. A folder and the model loaded from it have different fingerprints: compare only
        fingerprints of the same kind.
    """
    if isinstance(model, nn.Module):
        return _of_tensors(model)
    if str(model) == mini.HUB_PATH:
        model = mini.model_folder()
    path = Path(model).expanduser()
    if path.is_file():
        return fingerprint_files([path])
    if path.is_dir():
        own = fingerprint_files(file for file in path.iterdir() if _counts(file))
        return _with_base(own, BaseRecord.read(path)) if is_adapter_folder(path) else own
    return fingerprint(
        {"hub": str(model), "revision": revision, "commit": _cached_commit(str(model), revision)}
    )


def _with_base(adapter: str, base: BaseRecord) -> str:
    """Fingerprint of an adapter with its base: the same adapter over another base is another model."""
    of_base = model_fingerprint(base.name, base.model_args.get("revision")) if base.name else None
    return fingerprint({"adapter": adapter, "base": of_base, "subfolder": base.model_args.get("subfolder")})


def _counts(file: Path) -> bool:
    if not file.is_file() or file.name.startswith(NOT_WEIGHTS):
        return False
    return file.suffix in WEIGHTS or file.name in CONFIGURATION


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a name in the hub cache, so that a changed branch is another model."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def _of_tensors(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, config in sorted(getattr(model, "peft_config", {}).items()):
        # The scale of an adapter is not in any tensor.
        scale = [
            getattr(config, key, None)
            for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        ]
        digest.update(fingerprint([name, scale]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + b"\0")
        flat = runtime.whole(tensor.detach()).to("cpu").contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()[:LENGTH]
