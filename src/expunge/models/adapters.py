"""LoRA and QLoRA: add a new adapter to a base, continue a trained one, and save both.

The weights of the base are not trained. An adapter trains a pair of low-rank matrices A and B for each linear
layer: W x + (alpha / r) B A x. B = 0 at the start, so a new adapter changes nothing. Hu et al. 2021,
arXiv:2106.09685; with a base in 4 bits: Dettmers et al. 2023, arXiv:2305.14314. peft is imported only if an
adapter is used.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from expunge.core.errors import Fault, UserError, compiled, need_package, unknown
from expunge.lm import runtime
from expunge.models.adapter_args import DEFAULT_ALPHA, DEFAULT_DROPOUT, DEFAULT_R, AdapterArgs
from expunge.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILES, BaseRecord, check_base
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)

NAME = "default"
"""The name of the trained adapter; peft saves the adapter of this name at the top level of a folder."""
MERGED_ADAPTER = "adapter"
"""Subfolder of the adapter if the whole model was saved with the adapter merged into it."""


def attach_adapter(
    model: nn.Module,
    adapter: Mapping[str, Any] | None,
    *,
    for_training: bool,
    seed: int = 0,
    notices: list[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Any:
    """Attach the adapter of the section `model.adapter` to a loaded model.

    A model that was loaded from an adapter folder keeps its adapter, and training continues it. A new adapter
    is drawn from (seed, layer name) and changes no output. An evaluation never creates a new adapter.

    Args:
        model: a model from `load_model`; changed in place.
        adapter: the section `model.adapter`.
        for_training: whether the adapter will be trained; if not, it is frozen too.
        seed: seed of the run.
        notices: list that gets notices about choices that the user did not make.
        base: the `model.model_args` that loaded the base, for the record; None = not known.

    Returns:
        The model with its adapter, in eval mode; the unchanged model if no adapter is requested.

    Raises:
        UserError: a value is invalid, the adapter belongs to another base, rank or alpha differ from those of
            the continued adapter, or a layer does not exist. MissingExtraError if peft is missing.
    """
    args, notices = AdapterArgs.parse(adapter), [] if notices is None else notices
    if is_adapted(model):
        if args.path is not None:
            raise UserError(
                f"model.adapter.path is {args.path}, but the model path is already an adapter",
                "give only one of the two",
            )
        continued = _check_continued(model, args, notices if for_training else [])
        return _ready(continued, args, for_training, notices)
    if args.path is None and (args.type == "none" or not for_training):
        return model
    need_package("peft", "lora", f"an adapter (model/adapter, or a folder with {CONFIG_FILE})")
    if args.type == "qlora" and not getattr(model, "is_quantized", False):
        raise UserError(
            "model/adapter=qlora, but the base was not loaded in 4 bits", "load the base with load_model"
        )
    record = BaseRecord.of(model, base or {})
    if args.path is None:
        adapted = _with_new(model, args, seed)
    else:
        folder = Path(args.path).expanduser()
        check_base(folder, record, allow_other=args.allow_other_base, notices=notices)
        adapted = _check_continued(_with_trained(model, folder, for_training), args, [])
    adapted.peft_config[NAME].base_model_name_or_path = record.name or None
    adapted.peft_config[NAME].revision = record.model_args.get("revision")
    adapted.expunge_base = record
    return _ready(adapted, args, for_training, notices)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model, wrapped or not, has a peft adapter."""
    inner = unwrapped(model)
    return hasattr(inner, "peft_config") and hasattr(inner, "get_base_model")


def save_model(model: nn.Module, folder: Path | str, *, merge: bool = False, **kwargs: Any) -> None:
    """Save a model. If it has an adapter, save only the adapter, with a record of its base.

    Args:
        model: the trained model. Merging changes it: the adapter in memory is removed.
        folder: target folder for the model or the adapter. The caller saves the tokenizer.
        merge: save the whole model with the adapter merged into it, and the adapter in the subfolder
            `adapter`. Merged weights are rounded to the dtype of the base.
        **kwargs: further arguments of `save_pretrained`.

    Raises:
        UserError: the adapter cannot be merged, because the base is quantised or an adapted layer shares its
            weights with another layer.
    """
    inner: Any = unwrapped(model)
    folder = Path(folder)
    if not is_adapted(inner):
        inner.save_pretrained(str(folder), **kwargs)
        return
    if merge:
        check_mergeable(inner)
    place = folder / MERGED_ADAPTER if merge else folder
    # A reference adapter is not saved. The vocabulary never grows, so peft need not search the hub for
    # embeddings.
    inner.save_pretrained(str(place), selected_adapters=[NAME], save_embedding_layers=False, **kwargs)
    record = getattr(inner, "expunge_base", None)
    if record is not None:
        record.write(place)
    if merge:
        inner.merge_and_unload(adapter_names=[NAME]).save_pretrained(str(folder), **kwargs)


def check_mergeable(model: Any) -> None:
    """Refuse an adapter that cannot be merged; call it before a long training.

    Raises:
        UserError: the base is quantised, or an adapted layer shares its weights with another layer.
    """
    base = model.get_base_model()
    if getattr(base, "is_quantized", False):
        hint = (
            "set model.adapter.merge=false to save only the adapter; then load the base in full precision "
            "with model.adapter.path and merge there"
        )
        raise UserError("model.adapter.merge=true: an adapter cannot be merged into a base in 4 bits", hint)
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    if getattr(base.config, "tie_word_embeddings", False) and any(
        module in embeddings for module in lora_layers(model).values()
    ):
        hint = "remove the embeddings from model.adapter.target_modules, or set model.adapter.merge=false"
        raise UserError(
            "model.adapter.merge=true: an adapted layer shares its weights with the embeddings", hint
        )


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that LoRA wraps, by name in the base."""
    from peft.tuners.lora import LoraLayer

    named: Iterator[tuple[str, nn.Module]] = cast(Any, unwrapped(model)).get_base_model().named_modules()
    return {name: module for name, module in named if isinstance(module, LoraLayer)}


def new_config(args: AdapterArgs) -> Any:
    """Peft's configuration of a new adapter."""
    from peft import LoraConfig

    targets = args.target_modules if args.target_modules is not None else "all-linear"
    return LoraConfig(
        r=args.r or DEFAULT_R,
        lora_alpha=cast(int, args.alpha or DEFAULT_ALPHA),
        lora_dropout=DEFAULT_DROPOUT if args.dropout is None else args.dropout,
        bias=cast(Any, args.bias or "none"),
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        task_type="CAUSAL_LM",
    )


def _with_new(model: nn.Module, args: AdapterArgs, seed: int) -> Any:
    """The model with an adapter whose A is drawn from the seed and whose B is 0."""
    _check_targets(model, args.target_modules)
    config = new_config(args)
    if getattr(model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training

        # Casts norms and embeddings to float32. The trainer switches gradient checkpointing on.
        model = cast(Any, prepare_model_for_kbit_training)(model, use_gradient_checkpointing=False)
    adapted = _wrapped(model, config)
    for name, layer in lora_layers(adapted).items():
        generator = runtime.generator(seed, "adapter", name)
        if NAME in layer.lora_A:
            # The distribution of peft (uniform on +-1/sqrt(inputs)), drawn for each layer separately on the
            # CPU, so it is the same on any device.
            _draw(
                layer.lora_A[NAME].weight,
                lambda drawn, g=generator: nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=g),
            )
        else:
            _draw(
                layer.lora_embedding_B[NAME], lambda drawn, g=generator: nn.init.normal_(drawn, generator=g)
            )
    return adapted


def _draw(parameter: Tensor, draw: Any) -> None:
    with torch.no_grad():
        parameter.copy_(draw(torch.empty(parameter.shape)))


def _with_trained(model: nn.Module, folder: Path, for_training: bool) -> Any:
    """The model with the adapter of a folder; checks that every weight was read."""
    from peft import PeftConfig

    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise UserError(
            f"the adapter {folder} has no weights",
            f"looked for {' or '.join(WEIGHTS_FILES)} in {folder.absolute()}",
        )
    try:
        with warnings.catch_warnings():
            # peft ignores keys of another peft version, with a long warning that lists them all.
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            raise UserError(
                f"the adapter {folder} is of type {config.peft_type}",
                "only LoRA adapters can be continued or evaluated",
            )
        config.inference_mode, config.base_model_name_or_path = not for_training, None
        adapted = _wrapped(model, config)
        result = adapted.load_adapter(str(folder), NAME, is_trainable=for_training, torch_device="cpu")
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"the adapter {folder} does not fit the base or is damaged: {_first_lines(error)}",
            "give the base that the adapter was made for, or copy the adapter again",
        ) from error
    lacking, foreign = list(result.missing_keys), list(result.unexpected_keys)
    if lacking or foreign:
        what = (
            f"lacks {len(lacking)} weights such as {lacking[0]}"
            if lacking
            else f"has {len(foreign)} weights that do not belong there, such as {foreign[0]}"
        )
        raise UserError(
            f"the adapter {folder} does not fit the base: it {what}",
            "the folder is incomplete or the adapter belongs to another base; copy it again or give its base",
        )
    return adapted


def _wrapped(model: nn.Module, config: Any) -> Any:
    """Call `get_peft_model` without changing the global random state; its weights are replaced later."""
    from peft import get_peft_model

    where = next(model.parameters()).device
    try:
        with (
            torch.random.fork_rng(devices=[where] if where.type == "cuda" else []),
            warnings.catch_warnings(),
        ):
            # `check_mergeable` reports adapters of tied embeddings, because they matter only for merging.
            warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")
            # peft 0.21 uses an old name of transformers.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            adapted: Any = get_peft_model(cast(Any, model), config, adapter_name=NAME)
    except ValueError as error:
        raise UserError(
            f"the adapter cannot be attached to {type(model).__name__}: {_first_lines(error)}",
            "check model.adapter.target_modules",
        ) from error
    kept = adapted.peft_config[NAME]
    if isinstance(kept.target_modules, set):
        # The order of a set differs between processes, and so would the saved file.
        kept.target_modules = sorted(kept.target_modules)
    return adapted


def _check_continued(adapted: Any, args: AdapterArgs, notices: list[str]) -> Any:
    """Refuse settings that differ from the continued adapter, except dropout, which affects no weight."""
    config = adapted.peft_config[NAME]
    faults = [
        Fault(
            f"model.adapter.{key} is {asked}, but the continued adapter has {has}",
            f"leave out {key}, or start a new adapter",
        )
        for key, asked, has in (
            ("r", args.r, config.r),
            ("alpha", args.alpha, config.lora_alpha),
            ("bias", args.bias, config.bias),
        )
        if asked is not None and asked != has
    ]
    layers = lora_layers(adapted)
    if args.target_modules is not None:
        base = adapted.get_base_model()
        names = [
            name
            for name, _ in base.named_modules()
            if ".lora_" not in name and not name.endswith("base_layer")
        ]
        if set(layers) != {name for name in names if _targeted(name, args.target_modules)}:
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            given = args.target_modules
            message = f"model.adapter.target_modules is {given!r}, but the continued adapter is on {kinds}"
            faults.append(Fault(message, "leave out target_modules, or start a new adapter"))
    if faults:
        raise UserError.of(faults)
    if args.dropout is not None:
        config.lora_dropout = args.dropout
        for layer in layers.values():
            layer.lora_dropout[NAME] = nn.Dropout(args.dropout) if args.dropout > 0 else nn.Identity()
    if args.type == "none":
        notices.append(
            "the model is an adapter over a base: training continues the adapter and does not change the base"
        )
    return adapted


def _ready(adapted: Any, args: AdapterArgs, for_training: bool, notices: list[str]) -> Any:
    """The model in eval mode, with `requires_grad` set; refuses before training what cannot be merged."""
    if not for_training:
        adapted.requires_grad_(False)
        return adapted.eval()
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        adapted.set_adapter(NAME)
    base = adapted.get_base_model()
    if args.merge:
        check_mergeable(adapted)
        if base.dtype in (torch.bfloat16, torch.float16):
            dtype = str(base.dtype).removeprefix("torch.")
            notices.append(
                f"model.adapter.merge=true: merged weights are rounded to {dtype}; "
                "model.model_args.master_dtype=float32 avoids the rounding"
            )
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    log.info("training %d adapter weights over %s", trained, type(base).__name__)
    return adapted.eval()


def _check_targets(model: nn.Module, targets: tuple[str, ...] | str | None) -> None:
    """Refuse names that match no layer; peft would silently ignore some of them."""
    if targets is None:
        return
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding)) or hasattr(module, "nf")
    ]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    if isinstance(targets, str):
        pattern = compiled(targets, f"model.adapter.target_modules {targets!r}")
        if not any(pattern.fullmatch(name) for name in names):
            raise UserError(
                f"model.adapter.target_modules {targets!r} matches the whole name of no layer",
                f"layer names are such as {names[0]}",
            )
        return
    absent = [target for target in targets if not any(_targeted(name, (target,)) for name in names)]
    if absent:
        raise UserError.of(unknown("layer in model.adapter.target_modules", name, kinds) for name in absent)


def _targeted(name: str, targets: tuple[str, ...] | str) -> bool:
    """Whether `targets` select a layer, by the rule of peft."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _first_lines(error: Exception) -> str:
    return " ".join(" ".join(str(error).split())[:300].splitlines()) or type(error).__name__
