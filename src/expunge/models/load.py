"""From `model.model_args` and `model.adapter` to a model that is ready to train or to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from expunge.core.errors import MissingExtraError, UserError
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
    """Load a causal language model, with its adapter where it has one.

    Without an adapter this is `base_model.load_base`. A base whose adapter is trained stays as it is, so its
    weights are kept in `torch_dtype` rather than in float32, and in 4 bits for qlora; the adapter's own weights are
    in float32.

    Args:
        model_args: the path may be an adapter's folder: the base is then the one that its record names.
        adapter: the section `model.adapter`.
        for_training: whether it will be trained. For an evaluation no new adapter is made.
        seed: of the run, for a new adapter.
        notices: what the machine could not do as asked is appended here.

    Returns:
        The model in eval mode and the dtype to compute in.

    Raises:
        UserError: as `load_base` and `attach_adapter`; two adapters; a base that cannot be found.
            MissingExtraError without peft, or without bitsandbytes for qlora.
    """
    notices = [] if notices is None else notices
    section = dict(adapter or {})
    args = AdapterArgs.parse(section)
    folder = adapter_folder_of(model_args)
    if folder is None and args.path is None and (args.type == "none" or not for_training):
        return load_base(model_args, for_training=for_training, notices=notices)
    if folder is not None:
        if args.path is not None:
            hint = "give the base as model.model_args.pretrained_model_name_or_path, or leave model.adapter.path out"
            raise UserError(
                f"{folder} is an adapter, and so is model.adapter.path={args.path}: there can be one", hint
            )
        model_args, section = base_args(model_args, folder), {**section, "path": str(folder)}
        if for_training and args.type == "none":
            notices.append(
                f"{folder} is an adapter over {model_args.get('pretrained_model_name_or_path')}: training continues the adapter"
            )
    quantization = quantization_of(args, notices)
    try:
        loaded = load_base(
            model_args, for_training=for_training, notices=notices, frozen=True, quantization=quantization
        )
    except UserError as error:
        if folder is None or isinstance(error, MissingExtraError):
            raise
        hint = (
            f"give its base as model.model_args.pretrained_model_name_or_path and model.adapter.path={folder}"
        )
        raise UserError(
            f"the base of the adapter {folder} cannot be loaded: {error.faults[0].message}", hint
        ) from error
    model = attach_adapter(
        loaded.model, section, for_training=for_training, seed=seed, notices=notices, base=model_args
    )
    return Loaded(model, loaded.compute_dtype)


def adapter_folder_of(model_args: Mapping[str, Any]) -> Path | None:
    """The folder that the model's path names, if it is an adapter's."""
    given = str(model_args.get("pretrained_model_name_or_path") or "")
    if not given or given == mini.HUB_PATH:
        return None
    folder = Path(given).expanduser()
    return folder if folder.is_dir() and is_adapter_folder(folder) else None


def base_args(model_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`model.model_args` with the base of an adapter's folder instead of the folder.

    Raises:
        UserError: the folder does not say what its base is.
    """
    record = BaseRecord.read(folder)
    if not record.name:
        hint = (
            f"give the base as model.model_args.pretrained_model_name_or_path and model.adapter.path={folder}"
        )
        raise UserError(f"the adapter {folder} does not say which base it belongs to", hint)
    return {**{key: value for key, value in model_args.items() if key not in BASE_KEYS}, **record.model_args}


def quantization_of(args: AdapterArgs, notices: list[str]) -> Any:
    """How the base is quantised: 4-bit NF4 with double quantisation for qlora (arXiv:2305.14314 sections 2-3), else None.

    What it computes in is the loader's to say, which knows the machine.

    Raises:
        MissingExtraError: without bitsandbytes.
    """
    if args.type != "qlora":
        return None
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "bitsandbytes", "quantized", "model/adapter=qlora (a base in 4 bits, made for CUDA devices)"
        )
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        notices.append(
            "model/adapter=qlora: this machine has no CUDA device, 4-bit arithmetic is slow on its processor"
        )
    return cast(Any, BitsAndBytesConfig)(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
