"""LoRA and QLoRA: a new adapter on a base, a trained one continued, and saving either.

The weights of the base stay as they are; what is trained are pairs of low-rank matrices A and B beside its
linear layers, W x + (alpha / r) B A x, with B = 0 at the start, so that a new adapter changes nothing. Hu et
al. 2021, arXiv:2106.09685; over a base in 4
bits: Dettmers et al. 2023, arXiv:2305.14314. peft is imported only where an adapter is asked for.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from expunge.core.errors import Fault, MissingExtraError, UserError, unknown
from expunge.lm import runtime
from expunge.models.adapter_args import DEFAULT_ALPHA, DEFAULT_DROPOUT, DEFAULT_R, AdapterArgs
from expunge.models.adapter_folder import CONFIG_FILE, WEIGHTS_FILES, BaseRecord, check_base
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)

NAME = "default"
"""The name of the adapter in training; peft saves the adapter of this name at the top of a folder."""
MERGED_ADAPTER = "adapter"
"""Where the adapter itself lies when the whole model was saved with it merged in."""


def attach_adapter(
    model: nn.Module,
    adapter: Mapping[str, Any] | None,
    *,
    for_training: bool,
    seed: int = 0,
    notices: list[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Any:
    """Put the adapter that `model.adapter` asks for on a model that was loaded.

    A model that has an adapter already, since its path was an adapter's folder, keeps it, and training goes
    on with it. A new adapter is drawn from (seed, layer name) and changes no output; for an evaluation none
    is made.

    Args:
        model: as `load_model` gives it; changed in place.
        adapter: the section `model.adapter`.
        for_training: whether the adapter will be trained; else it is frozen as well.
        seed: of the run.
        notices: told what was taken without being asked for in so many words.
        base: the `model.model_args` that loaded the base, for the record; what the model says of itself by
            default.

    Returns:
        The model with its adapter, in eval mode; the model itself where no adapter is asked for.

    Raises:
        UserError: bad values, an adapter of another base, another rank or alpha than the adapter that is
            continued has, layers that are not there. MissingExtraError without peft.
    """
    args, notices = AdapterArgs.parse(adapter), [] if notices is None else notices
    if is_adapted(model):
        if args.path is not None:
            raise UserError(
                f"model.adapter.path is {args.path}, but the model's path is an adapter already",
                "give one of the two",
            )
        return _ready(
            _check_continued(model, args, notices if for_training else []), args, for_training, notices
        )
    if args.path is None and (args.type == "none" or not for_training):
        return model
    _need_peft()
    if args.type == "qlora" and not getattr(model, "is_quantized", False):
        raise UserError(
            "model/adapter=qlora, but the base was not loaded in 4 bits", "load it with load_model"
        )
    record = BaseRecord.of(
        model,
        base
        or {"pretrained_model_name_or_path": getattr(getattr(model, "config", None), "name_or_path", None)},
    )
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
    """Whether a model, wrapped or not, has an adapter of peft around it."""
    inner = unwrapped(model)
    return hasattr(inner, "peft_config") and hasattr(inner, "get_base_model")


def save_model(model: nn.Module, folder: Path | str, *, merge: bool = False, **kwargs: Any) -> None:
    """Save a model, and of one with an adapter the adapter alone, with a record of its base.

    Args:
        model: what was trained. Merging changes it: the adapter in memory is gone after.
        folder: filled with the model, or with the adapter. The tokenizer is the caller's.
        merge: save the whole model with the adapter merged in, and the adapter in the folder `adapter` of it.
            Sums are rounded to the base's dtype.
        **kwargs: further arguments of `save_pretrained`.

    Raises:
        UserError: an adapter that cannot be merged: the base is quantised, or an adapted layer shares its
            weights with another.
    """
    inner: Any = unwrapped(model)
    folder = Path(folder)
    if not is_adapted(inner):
        inner.save_pretrained(str(folder), **kwargs)
        return
    if merge:
        check_mergeable(inner)
    place = folder / MERGED_ADAPTER if merge else folder
    # A reference adapter stays out. The vocabulary never grows here, so there are no embeddings to look for
    # on the hub.
    inner.save_pretrained(str(place), selected_adapters=[NAME], save_embedding_layers=False, **kwargs)
    record = getattr(inner, "expunge_base", None)
    if record is not None:
        record.write(place)
    if merge:
        inner.merge_and_unload(adapter_names=[NAME]).save_pretrained(str(folder), **kwargs)


def check_mergeable(model: Any) -> None:
    """Refuse what cannot be merged; worth asking before a long training.

    Raises:
        UserError: the base is quantised, or an adapted layer shares its weights with another.
    """
    base = model.get_base_model()
    if getattr(base, "is_quantized", False):
        hint = "save the adapter alone, then load it with model.adapter.path over the base in full precision and merge there"
        raise UserError("model.adapter.merge=true: an adapter cannot be merged into a base in 4 bits", hint)
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    if getattr(base.config, "tie_word_embeddings", False) and any(
        module in embeddings for module in lora_layers(model).values()
    ):
        hint = "leave the embeddings out of model.adapter.target_modules, or save the adapter alone"
        raise UserError(
            "model.adapter.merge=true: an adapted layer shares its weights with the embeddings", hint
        )


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that LoRA wraps, by their names in the base."""
    from peft.tuners.lora import LoraLayer

    named: Iterator[tuple[str, nn.Module]] = cast(Any, unwrapped(model)).get_base_model().named_modules()
    return {name: module for name, module in named if isinstance(module, LoraLayer)}


def new_config(args: AdapterArgs) -> Any:
    """What peft is given for a new adapter."""
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

        # Norms and embeddings to float32; checkpointing is the trainer's to switch on.
        model = cast(Any, prepare_model_for_kbit_training)(model, use_gradient_checkpointing=False)
    adapted = _wrapped(model, config)
    for name, layer in lora_layers(adapted).items():
        generator = runtime.generator(seed, "adapter", name)
        if NAME in layer.lora_A:
            # peft's own choice, uniform on +-1/sqrt(inputs), drawn apart for each layer and on the CPU: the
            # same on any device.
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
    """The model with the adapter of a folder, every one of whose weights was read."""
    from peft import PeftConfig

    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise UserError(
            f"the adapter {folder} has no weights",
            f"looked for {' or '.join(WEIGHTS_FILES)} in {folder.absolute()}",
        )
    try:
        with warnings.catch_warnings():
            # Keys of another version of peft, which it leaves out with a warning that lists them all.
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
            "give the base it was made for",
        ) from error
    lacking, foreign = list(result.missing_keys), list(result.unexpected_keys)
    if lacking or foreign:
        what = (
            f"lacks {len(lacking)} weights such as {lacking[0]}"
            if lacking
            else f"has {len(foreign)} weights such as {foreign[0]} too many"
        )
        raise UserError(
            f"the adapter {folder} does not fit the base: it {what}",
            "the folder is incomplete, or belongs to another base",
        )
    return adapted


def _wrapped(model: nn.Module, config: Any) -> Any:
    """`get_peft_model`, which draws weights that are replaced after: the global random state stays as it was."""
    from peft import get_peft_model

    where = next(model.parameters()).device
    try:
        with (
            torch.random.fork_rng(devices=[where] if where.type == "cuda" else []),
            warnings.catch_warnings(),
        ):
            # The adapter of tied embeddings is told where it matters, at merging.
            warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")
            # peft 0.21 asks transformers by an old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            adapted: Any = get_peft_model(cast(Any, model), config, adapter_name=NAME)
    except ValueError as error:
        raise UserError(
            f"the adapter cannot be put on {type(model).__name__}: {_first_lines(error)}",
            "see model.adapter.target_modules",
        ) from error
    kept = adapted.peft_config[NAME]
    if isinstance(kept.target_modules, set):
        # In the order of a set, the same adapter would be another file in each process.
        kept.target_modules = sorted(kept.target_modules)
    return adapted


def _check_continued(adapted: Any, args: AdapterArgs, notices: list[str]) -> Any:
    """Refuse to continue an adapter as another one than it is; its dropout may change, since no weight depends on it."""
    config = adapted.peft_config[NAME]
    faults = [
        Fault(
            f"model.adapter.{key} is {asked}, but the adapter that is continued has {has}",
            f"leave {key} out, or start a new adapter",
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
            message = f"model.adapter.target_modules is {args.target_modules!r}, but the adapter that is continued is on {kinds}"
            faults.append(Fault(message, "leave target_modules out, or start a new adapter"))
    if faults:
        raise UserError.of(faults)
    if args.dropout is not None:
        config.lora_dropout = args.dropout
        for layer in layers.values():
            layer.lora_dropout[NAME] = nn.Dropout(args.dropout) if args.dropout > 0 else nn.Identity()
    if args.type == "none":
        notices.append(
            "the model is an adapter over a base: training continues the adapter, the base stays as it is"
        )
    return adapted


def _ready(adapted: Any, args: AdapterArgs, for_training: bool, notices: list[str]) -> Any:
    """The model in eval mode, with what will be trained requiring gradients; what cannot be merged is refused before the training."""
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
                f"model.adapter.merge=true: merged weights are rounded to {dtype}; model.model_args.master_dtype=float32 keeps them"
            )
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    log.info("training %d weights of an adapter over %s", trained, type(base).__name__)
    return adapted.eval()


def _check_targets(model: nn.Module, targets: tuple[str, ...] | str | None) -> None:
    """Refuse names that no layer has; peft would leave some of them out in silence."""
    if targets is None:
        return
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding)) or hasattr(module, "nf")
    ]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    if isinstance(targets, str):
        with _as_pattern(targets):
            matched = any(_targeted(name, targets) for name in names)
        if not matched:
            raise UserError(
                f"model.adapter.target_modules {targets!r} matches the whole name of no layer",
                f"such as {names[0]}",
            )
        return
    faults = [
        unknown("layer in model.adapter.target_modules", t, kinds)
        for t in targets
        if not any(_targeted(n, (t,)) for n in names)
    ]
    if faults:
        raise UserError.of(faults)


def _targeted(name: str, targets: tuple[str, ...] | str) -> bool:
    """Whether a layer's name is meant: peft's rule."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


@contextmanager
def _as_pattern(text: str) -> Iterator[None]:
    try:
        yield
    except re.error as error:
        raise UserError(
            f"model.adapter.target_modules {text!r} is not a regular expression: {error}",
            "give names as a list",
        ) from error


def _first_lines(error: Exception) -> str:
    return " ".join(" ".join(str(error).split())[:300].splitlines()) or type(error).__name__


def _need_peft() -> None:
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", f"an adapter (model/adapter, or a folder with {CONFIG_FILE})")
