"""Checks of the `model` section: folders, dtypes, attention, the names of arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config.adapter import ADAPTER_FILE, bind_adapter
from expunge.config.checks.checking import Checking
from expunge.config.model_keys import ATTENTIONS, DTYPES, MODEL_KEYS, TEMPLATE_KEYS, TOKENIZER_KEYS
from expunge.core.annotations import Type

MODEL_FILE = "config.json"


def check_model(check: Checking) -> None:
    """Check everything about the model that is known before loading."""
    args = check.cfg.section("model.model_args")
    check.known("model.model_args", args, MODEL_KEYS, "a model's loader")
    for name, keys, reader in (
        ("tokenizer_args", TOKENIZER_KEYS, "a tokenizer's loader"),
        ("template_args", TEMPLATE_KEYS, "a template"),
    ):
        check.known(f"model.{name}", check.cfg.section(f"model.{name}"), keys, reader)
    bind_adapter(check, check.cfg.section("model.adapter"))
    for key in ("torch_dtype", "master_dtype"):
        if args.get(key) is not None:
            value = str(args[key]).removeprefix("torch.")
            check.check(f"model.model_args.{key}", value, Type("literal", (*DTYPES, "auto")))
    if (attention := args.get("attn_implementation")) is not None:
        check.check("model.model_args.attn_implementation", attention, Type("literal", ATTENTIONS))
    _folder(check, "model.model_args.pretrained_model_name_or_path", args)
    tokenizer = check.cfg.get("model.tokenizer_args.pretrained_model_name_or_path")
    if tokenizer != args.get("pretrained_model_name_or_path"):
        _tokenizer(check, tokenizer)


def looks_local(name: str) -> bool:
    """Whether a model's name is a folder: it exists, or it is not a hub id (`name` or `owner/name`)."""
    path = Path(name).expanduser()
    return path.exists() or name.startswith((".", "/", "~", "saves/")) or name.count("/") > 1


def _folder(check: Checking, key: str, args: dict[str, Any]) -> None:
    name = args.get("pretrained_model_name_or_path")
    if not isinstance(name, str) or not name:
        check.fault(f"{key} is not given", f"add {key}=NAME: a model on the hub, or a local model folder")
        return
    if not looks_local(name):
        return
    path = Path(name).expanduser()
    wanted = str(args.get("gguf_file") or (ADAPTER_FILE if (path / ADAPTER_FILE).is_file() else MODEL_FILE))
    if path.is_file() and path.suffix == ".gguf":
        return
    if not path.is_dir():
        what = "is a file, not a model folder" if path.is_file() else "no such folder"
        check.refuse(key, name, what, f"looked for {path.resolve()}; a model folder has a {MODEL_FILE}")
    elif not (path / wanted).is_file():
        nested = sorted(item.parent.name for item in path.glob("*/config.json"))
        hint = (
            f"did you mean one of its folders: {', '.join(nested)}?"
            if nested
            else "give the folder that a training run or save_pretrained wrote"
        )
        check.refuse(key, name, f"not a model folder, it has no {wanted}", hint)


def _tokenizer(check: Checking, name: Any) -> None:
    key = "model.tokenizer_args.pretrained_model_name_or_path"
    if not isinstance(name, str) or not name:
        check.fault(f"{key} is not given", f"add {key}=NAME, usually the same path as the model's")
        return
    path = Path(name).expanduser()
    # An adapter's folder may have no tokenizer; the base model's tokenizer is then used.
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", ADAPTER_FILE)
    if path.suffix != ".gguf" and looks_local(name) and not any((path / item).is_file() for item in files):
        hint = f"looked for tokenizer.json in {path.resolve()}"
        check.refuse(key, name, "not a folder with a tokenizer", hint)
