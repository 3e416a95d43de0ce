"""Read the weights of a whole model; `load.load_model` adds an adapter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from expunge.config.model_keys import HUB_KEYS, MODEL_KEYS
from expunge.core.errors import MissingExtraError, UserError, unknown
from expunge.lm import runtime
from expunge.models.attention import WRITTEN_DOWN, choose_attention
from expunge.models.location import Location, check_model_folder, locate, not_found
from expunge.models.precision import compute_dtype, parse_dtype
from expunge.models.progress_bars import no_progress_bar

PASSED_ON = ("device_map", "max_memory", "use_safetensors", "variant", *HUB_KEYS)


class Loaded(NamedTuple):
    """A model and the dtype to compute in.

    Attributes:
        model: the model in eval mode.
        compute_dtype: dtype for autocast; if it equals the dtype of the weights, no autocast is needed.
    """

    model: PreTrainedModel
    compute_dtype: torch.dtype


def load_base(
    model_args: Mapping[str, Any],
    *,
    for_training: bool,
    notices: list[str] | None = None,
    frozen: bool = False,
    quantization: Any = None,
) -> Loaded:
    """Load a causal language model without adapters.

    `torch_dtype` is the dtype of the computation. For training, the weights are kept in `master_dtype`
    (default float32), because half precision rounds small updates to zero; autocast computes in half
    precision. For evaluation, the weights are in `torch_dtype` (default float32), and the model is moved to
    the device of this rank unless `device_map` is given.

    Args:
        model_args: keys of `from_pretrained` (`MODEL_KEYS`); the path `expunge/mini` is the embedded model.
        for_training: whether the model will be trained.
        notices: list that gets a notice if the machine cannot do what was requested.
        frozen: these weights are not trained (an adapter may be): they are in `torch_dtype` unless
            `master_dtype` is given.
        quantization: a quantisation config of transformers; its compute dtype is set here.

    Returns:
        The model, in eval mode, and the dtype to compute in.

    Raises:
        UserError: a key is unknown, no model was found (the message lists the places searched), or the
            weights are damaged or incomplete.
    """
    notices = [] if notices is None else notices
    faults = [
        unknown("key of model.model_args", key, MODEL_KEYS) for key in model_args if key not in MODEL_KEYS
    ]
    if faults:
        raise UserError.of(faults)
    place = locate(model_args, "model.model_args")
    check_model_folder(place)
    where = runtime.device()
    device_map = model_args.get("device_map")
    if where.type == "cpu" and isinstance(device_map, str) and device_map.startswith("cuda"):
        notices.append(f"device_map={device_map}: this machine has no CUDA device, using the CPU")
        device_map = None
    passed = {
        key: model_args[key] for key in PASSED_ON if model_args.get(key) is not None and key != "device_map"
    }
    passed["trust_remote_code"] = bool(model_args.get("trust_remote_code", False))
    config = _config(place, passed, model_args.get("cache_dir"))
    dtype = compute_dtype(
        model_args.get("torch_dtype", model_args.get("dtype")), getattr(config, "dtype", None), where, notices
    )
    weights = (
        parse_dtype("master_dtype", model_args.get("master_dtype") or torch.float32)
        if for_training
        else dtype
    )
    if frozen and not model_args.get("master_dtype"):
        weights = dtype
    elif for_training and weights in (torch.bfloat16, torch.float16):
        notices.append(
            f"master_dtype={str(weights).removeprefix('torch.')}: updates much smaller than the weights are "
            "rounded to zero"
        )
    attention = choose_attention(model_args.get("attn_implementation"), config, where, dtype, notices)
    if attention is not None:
        passed["attn_implementation"] = attention
    if quantization is not None:
        quantization.bnb_4bit_compute_dtype = dtype
        passed["quantization_config"] = quantization
        device_map = {"": where} if device_map is None else device_map
    if device_map is not None:
        passed["device_map"] = device_map
    model = _weights(place, passed, weights, notices)
    setattr(model, WRITTEN_DOWN, attention or model.get_correct_attn_implementation(None))
    if not for_training and device_map is None:
        model = model.to(where)
    return Loaded(model.eval(), dtype)


def read_config_of(model_args: Mapping[str, Any]) -> Any:
    """The configuration of a model, without its weights.

    Args:
        model_args: as `load_base` takes them.

    Raises:
        UserError: there is none at that place.
    """
    place = locate(model_args, "model.model_args")
    check_model_folder(place)
    passed = {key: model_args[key] for key in HUB_KEYS if model_args.get(key) is not None}
    return _config(place, passed, model_args.get("cache_dir"))


def _config(place: Location, passed: Mapping[str, Any], cache_dir: Any) -> Any:
    """The configuration of the model, which determines the possible attention and dtype."""
    kwargs = {key: value for key, value in passed.items() if key in HUB_KEYS}
    if place.gguf_file is not None:
        _need_gguf()
        kwargs["gguf_file"] = place.gguf_file
    try:
        return AutoConfig.from_pretrained(place.source, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise not_found(place, error, cache_dir) from error


def _weights(place: Location, passed: Mapping[str, Any], dtype: torch.dtype, notices: list[str]) -> Any:
    """The model in `dtype`; checks that every weight was read."""
    gguf = {} if place.gguf_file is None else {"gguf_file": place.gguf_file}
    try:
        # Show a progress bar for a download, but not for reading a folder, which takes a second.
        with warnings.catch_warnings(), no_progress_bar() if place.folder is not None else nullcontext():
            warnings.simplefilter("ignore", FutureWarning)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place.source, dtype=dtype, output_loading_info=True, **gguf, **passed
            )
            model, info = loaded
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise not_found(place, error, passed.get("cache_dir")) from error
    # transformers silently fills missing weights with random numbers.
    lacking = sorted(str(name) for name in (*info["missing_keys"], *info["mismatched_keys"]))
    if lacking:
        raise UserError(
            f"the weights of {place.given} are incomplete: {len(lacking)} tensors are missing or have "
            f"another shape, such as {lacking[0]}",
            "the files are damaged or belong to another configuration; copy them again",
        )
    if info["unexpected_keys"]:
        notices.append(
            f"{place.given} contains {len(info['unexpected_keys'])} tensors that {type(model).__name__} does "
            "not use"
        )
    return model


def _need_gguf() -> None:
    """Refuse a GGUF file if the package that reads it is missing."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", "reading a GGUF file")
