"""The folder of a saved adapter, and the record of the base model that it belongs to. Imports no peft."""

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
"""Of `model.model_args`, what says which model it is."""
SAMPLE = 1024
"""Entries of each tensor that tell one base from another."""


@dataclass(frozen=True)
class BaseRecord:
    """Which model an adapter was made for.

    Attributes:
        model_args: those of `BASE_KEYS` that load it.
        weights: `sampled_fingerprint` of it; None where that is unknown.
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
        """What an adapter's folder says of its base: our own record, else peft's.

        Raises:
            UserError: a file that is not JSON, or no word about the base.
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
        """The record of a base that was loaded by `model_args`; a folder is named by its absolute path."""
        kept = {key: model_args[key] for key in BASE_KEYS if model_args.get(key) is not None}
        name = kept.get("pretrained_model_name_or_path")
        if name is not None and name != mini.HUB_PATH and Path(name).expanduser().exists():
            kept["pretrained_model_name_or_path"] = str(Path(name).expanduser().absolute())
        return cls(kept, sampled_fingerprint(model))


def is_adapter_folder(folder: Path | None) -> bool:
    """Whether a folder holds an adapter rather than a whole model.

    Raises:
        UserError: it holds both. transformers would load the adapter's base in silence and leave the folder's
            own weights alone.
    """
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return False
    whole = sorted(path.name for path in folder.iterdir() if _is_whole_model(path))
    if whole:
        raise UserError(
            f"{folder} holds both an adapter and a whole model ({whole[0]}), so what to load is not clear",
            f"move {CONFIG_FILE} and the adapter's weights to a folder of their own",
        )
    return True


def sampled_fingerprint(model: nn.Module) -> str | None:
    """Tell one base from another by some entries of each of its tensors, without reading gigabytes.

    Entries are rounded to bfloat16, so that a base loaded in float32 and the same one loaded in bfloat16
    agree.

    Args:
        model: a base, without adapter.

    Returns:
        16 hex digits; None where a comparison would not hold: quantised weights, float16 (rounded twice),
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
    """Refuse an adapter that was made for another base than the one that was loaded.

    Where both records have a fingerprint, it decides, and a base that was moved or copied passes; else the
    names do.

    Args:
        folder: of the adapter.
        found: the base that was loaded.
        allow_other: tell it instead of refusing it.
        notices: where it is told.

    Raises:
        UserError: another base.
    """
    made_for = BaseRecord.read(folder)
    if made_for.weights is not None and found.weights is not None:
        differs = made_for.weights != found.weights
        how = f"its weights are not those of {made_for.name or 'that base'}"
    else:
        differs = bool(made_for.name and found.name) and _normal(made_for.name) != _normal(found.name)
        how = f"the adapter names {made_for.name}"
    if not differs:
        return
    message = f"the adapter {folder} was made for another base than {found.name or 'the model that was loaded'}: {how}"
    if not allow_other:
        raise UserError(
            message, "give its base, or model.adapter.allow_other_base=true where you know that it fits"
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
