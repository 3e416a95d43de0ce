"""Translate a model's name on a command line: prompt template, adapter, cache of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.files import read_json
from expunge.soul.command import Given
from expunge.soul.writing import assign

ADAPTER_FILE = "adapter_config.json"
LLAMA2 = re.compile(r"llama-?2", re.IGNORECASE)
CHAT = re.compile(r"chat|tofu", re.IGNORECASE)
# The LoRA adapter of SOUL's code.
SOUL_LORA = {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}


def add_model(
    given: Given, name: str, cache_dir: str | None, settings: dict[str, Any] | None, *, refuses: bool = False
) -> list[str]:
    """The overrides for a model and its adapter; faults and notices are added to `given`.

    `name` is a model on the hub, or a folder with a model or a LoRA adapter, which keeps its own settings.
    `settings` are those of a new adapter (`r`, `alpha`, `dropout`, `target_modules`); None = no new adapter.
    `refuses` uses the system prompt of the baseline `sys`.
    """
    found: list[str] = []
    try:
        for overrides, notices in (
            _model_overrides(name, cache_dir, refuses),
            _adapter_overrides(name, settings),
        ):
            found += overrides
            given.notices += notices
    except UserError as error:
        given.faults += error.faults
    return found


def _model_overrides(name: str, cache_dir: str | None, refuses: bool) -> tuple[list[str], list[str]]:
    """Overrides and notices for a model, without its adapter."""
    base = base_of(name) or name
    choice = "soul_llama2" if LLAMA2.search(base) and CHAT.search(base) else "soul"
    asked = "[INST] ... [/INST] ..." if choice == "soul_llama2" else "### Question: ... ### Answer: ..."
    notices = [f"{base} is prompted with {asked!r}; to change it, add model=soul or model=soul_llama2"]
    if refuses:
        choice += "_sys"
    overrides = [f"model={choice}", assign("model.model_args.pretrained_model_name_or_path", name)]
    if cache_dir is not None:
        overrides += [
            assign("model.model_args.cache_dir", cache_dir),
            assign("model.tokenizer_args.cache_dir", cache_dir),
        ]
    return overrides, notices


def base_of(name: str) -> str | None:
    """The base model of a folder with a LoRA adapter; None for any other name."""
    folder = Path(name).expanduser()
    # A merged model may be in the folder of its adapter; such a folder is a normal model.
    if not (folder / ADAPTER_FILE).is_file() or (folder / "config.json").is_file():
        return None
    base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_FILE} does not name the base model",
            "set its base_model_name_or_path to the model that the adapter was trained on",
        )
    return base


def _adapter_overrides(name: str, settings: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    base = base_of(name)
    if base is not None:
        return ["model/adapter=lora"], [f"{name} is a LoRA adapter of {base}; its own settings are used"]
    if settings is None:
        return [], []
    overrides = [assign(f"model.adapter.{key}", value) for key, value in settings.items()]
    return ["model/adapter=lora", *overrides], []
