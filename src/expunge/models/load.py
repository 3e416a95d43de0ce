"""Load a model for training or evaluation from `model.model_args` and `model.adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from expunge.core.errors import MissingExtraError, UserError, need_package
from expunge.data import mini
from expunge.models.adapter_args import AdapterArgs
from expunge.models.adapter_folder import BASE_KEYS, BaseRecord, is_adapter_folder
from expunge.models.adapters import attach_adapter
from expunge.models.base_model import Loaded, load_base

__all__ = ["Loaded", "load_model"]


def load_model(
    model_args: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
    *,
    for_training: bool,
    seed: int = 0,
    notices: list[str] | None = None,
) -> Loaded:
    """Load a causal language model, with its adapter if it has one.

    Without an adapter this is `base_model.load_base`. With an adapter, the base is not trained, so its
    weights are in `torch_dtype` instead of float32 (in 4 bits for qlora); the adapter weights are in float32.

    Args:
        model_args: the path may be an adapter folder; the record of the adapter then names the base.
        adapter: the section `model.adapter`.
        for_training: whether the model will be trained. An evaluation never creates a new adapter.
        seed: seed of the run, for a new adapter.
        notices: list that gets a notice if the machine cannot do what was requested.

    Returns:
        The model in eval mode and the dtype to compute in.

    Raises:
        UserError: as in `load_base` and `attach_adapter`; also if two adapters are given or the base is not
            found. MissingExtraError if peft is missing, or bitsandbytes for qlora.
    """
    notices = [] if notices is None else notices
    section = dict(adapter or {})
    args = AdapterArgs.parse(section)
    folder = adapter_folder_of(model_args)
    if folder is None and args.path is None and (args.type == "none" or not for_training):
        return load_base(model_args, for_training=for_training, notices=notices)
    if folder is not None:
        if args.path is not None:
            hint = "set model.model_args.pretrained_model_name_or_path to the base"
            raise UserError(
                f"{folder} is an adapter and model.adapter.path={args.path} is another; only one is possible",
                f"{hint}, or leave out model.adapter.path",
            )
        model_args, section = base_args(model_args, folder), {**section, "path": str(folder)}
        if for_training and args.type == "none":
            base = model_args.get("pretrained_model_name_or_path")
            notices.append(f"{folder} is an adapter over {base}: training continues the adapter")
    quantization = quantization_of(args, notices)
    try:
        loaded = load_base(
            model_args, for_training=for_training, notices=notices, frozen=True, quantization=quantization
        )
    except UserError as error:
        if folder is None or isinstance(error, MissingExtraError):
            raise
        raise UserError(
            f"the base of the adapter {folder} cannot be loaded: {error.faults[0].message}",
            _name_the_base(folder),
        ) from error
    model = attach_adapter(
        loaded.model, section, for_training=for_training, seed=seed, notices=notices, base=model_args
    )
    return Loaded(model, loaded.compute_dtype)


def adapter_folder_of(model_args: Mapping[str, Any]) -> Path | None:
    """The model path as a folder if it is an adapter folder, else None."""
    given = str(model_args.get("pretrained_model_name_or_path") or "")
    if not given or given == mini.HUB_PATH:
        return None
    folder = Path(given).expanduser()
    return folder if folder.is_dir() and is_adapter_folder(folder) else None


def base_args(model_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`model.model_args` with the base of an adapter folder instead of the folder.

    Raises:
        UserError: the folder does not name its base.
    """
    record = BaseRecord.read(folder)
    if not record.name:
        raise UserError(f"the adapter {folder} does not say which base it belongs to", _name_the_base(folder))
    return {**{key: value for key, value in model_args.items() if key not in BASE_KEYS}, **record.model_args}


def _name_the_base(folder: Path) -> str:
    return f"set model.model_args.pretrained_model_name_or_path to the base, and model.adapter.path={folder}"


def quantization_of(args: AdapterArgs, notices: list[str]) -> Any:
    """Quantisation of the base for qlora: 4-bit NF4 with double quantisation; else None.

    See arXiv:2305.14314 sections 2-3. `load_base` sets the compute dtype.

    Raises:
        MissingExtraError: bitsandbytes is missing.
    """
    if args.type != "qlora":
        return None
    need_package("bitsandbytes", "quantized", "model/adapter=qlora (a base in 4 bits, made for CUDA devices)")
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        notices.append(
            "model/adapter=qlora: this machine has no CUDA device, and 4-bit arithmetic is slow on a CPU"
        )
    return cast(Any, BitsAndBytesConfig)(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
