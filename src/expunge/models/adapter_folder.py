"""The folder of a saved adapter, and the record of its base model. Does not import peft."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.fingerprint import LENGTH
from expunge.data import mini

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
BASE_FILE = "base_model.json"
BASE_KEYS = ("pretrained_model_name_or_path", "revision", "subfolder", "variant", "gguf_file")
"""The keys of `model.model_args` that identify the model."""
SAMPLE = 1024
"""Number of entries of each tensor that identify a base."""


@dataclass(frozen=True)
class BaseRecord:
    """The model that an adapter was made for.

    Attributes:
        model_args: the values of `BASE_KEYS` that load the model.
        weights: its `sampled_fingerprint`; None if unknown.
    """

    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    @property
    def name(self) -> str:
        """The folder or hub name."""
        return str(self.model_args.get("pretrained_model_name_or_path") or "")

    def write(self, folder: Path) -> None:
        """Write `base_model.json`."""
        write_json(folder / BASE_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> BaseRecord:
        """Read the base of an adapter folder from our record, else from peft's.

        Raises:
            UserError: a file is missing or is not JSON.
        """
        if (folder / BASE_FILE).is_file():
            record = read_json(folder / BASE_FILE)
            return cls(dict(record["model_args"]), record.get("weights"))
        config = read_json(folder / CONFIG_FILE)
        args = {
            "pretrained_model_name_or_path": config.get("base_model_name_or_path"),
            "revision": config.get("revision"),
        }
        return cls({key: value for key, value in args.items() if value is not None})

    @classmethod
    def of(cls, model: nn.Module, model_args: Mapping[str, Any]) -> BaseRecord:
        """The record of a base that `model_args` loaded; a folder gets its absolute path."""
        kept = {key: model_args[key] for key in BASE_KEYS if model_args.get(key) is not None}
        name = kept.get("pretrained_model_name_or_path")
        if name is not None and name != mini.HUB_PATH and Path(name).expanduser().exists():
            kept["pretrained_model_name_or_path"] = str(Path(name).expanduser().absolute())
        return cls(kept, sampled_fingerprint(model))


def is_adapter_folder(folder: Path | None) -> bool:
    """Whether a folder contains an adapter, not a whole model.

    Raises:
        UserError: it contains both. transformers would silently load the base of the adapter and ignore the
            whole model in the folder.
    """
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return False
    whole = sorted(path.name for path in folder.iterdir() if _is_whole_model(path))
    if whole:
        raise UserError(
            f"{folder} contains both an adapter and a whole model ({whole[0]}): it is not clear what to load",
            f"move {CONFIG_FILE} and the weights of the adapter to a separate folder",
        )
    return True


def sampled_fingerprint(model: nn.Module) -> str | None:
    """Identify a base by some entries of each tensor, without reading gigabytes.

    Entries are rounded to bfloat16, so that the same base has one fingerprint in float32 and in bfloat16.

    Args:
        model: a base, without adapter.

    Returns:
        16 hex digits. None if a comparison is not reliable: quantised weights, float16 (rounded twice), or
        weights that are not in memory.
    """
    if getattr(model, "is_quantized", False):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta or tensor.dtype is torch.float16:
            return None
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
        if tensor.is_floating_point():
            sample = sample.to(torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + b"\0")
        digest.update(memoryview(sample.cpu().contiguous().view(torch.uint8).numpy()))
    return digest.hexdigest()[:LENGTH]


def check_base(folder: Path, found: BaseRecord, *, allow_other: bool, notices: list[str]) -> None:
    """Refuse an adapter that was not made for the loaded base.

    If both records have a fingerprint, the fingerprints are compared, so a base may be moved or copied. Else
    the names are compared.

    Args:
        folder: folder of the adapter.
        found: the loaded base.
        allow_other: add a notice instead of an error.
        notices: list that gets the notice.

    Raises:
        UserError: the adapter belongs to another base.
    """
    made_for = BaseRecord.read(folder)
    if made_for.weights is not None and found.weights is not None:
        differs = made_for.weights != found.weights
        how = f"the loaded weights are not those of {made_for.name or 'the base of the adapter'}"
    else:
        differs = bool(made_for.name and found.name) and _normal(made_for.name) != _normal(found.name)
        how = f"the adapter names {made_for.name}"
    if not differs:
        return
    loaded = found.name or "the loaded model"
    message = f"the adapter {folder} was made for another base, not for {loaded}: {how}"
    if not allow_other:
        raise UserError(
            message,
            "give the base of the adapter; if you know that this base fits, set "
            "model.adapter.allow_other_base=true",
        )
    notices.append(message)


def _is_whole_model(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    return path.suffix in (".safetensors", ".bin") and path.name.startswith(
        ("model", "pytorch_model", "consolidated")
    )


def _normal(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
