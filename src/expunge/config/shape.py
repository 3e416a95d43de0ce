"""The shape of a model, read from `config.json` and the headers of its safetensors files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.job import Shape

NOT_GATED = ("phi", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "falcon", "bloom")
"""Model types whose feed-forward part has two matrices."""


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape in a model's configuration (`config.json`); None if it does not state one."""
    config = config.get("text_config") or config

    def number(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name) is not None), 0)

    layers, hidden = number("num_hidden_layers", "n_layer"), number("hidden_size", "n_embd")
    heads, vocab = number("num_attention_heads", "n_head"), number("vocab_size")
    if not (layers and hidden and heads and vocab):
        return None
    return Shape(
        layers=layers,
        hidden=hidden,
        intermediate=number("intermediate_size", "n_inner") or 4 * hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or hidden // heads,
        vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", True)),
        gated=config.get("model_type") not in NOT_GATED,
    )


def local_shape(cfg: Config) -> Shape | None:
    """The shape of a model in a local folder; None if there is no such folder or it states no shape."""
    folder = _folder(cfg)
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        found = shape_of(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return None if found is None else replace(found, parameters=count_parameters(cfg) or 0)


def count_parameters(cfg: Config) -> int | None:
    """Number of weights of a local model, from the headers of its safetensors files; None without files."""
    folder = _folder(cfg)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(_parameters(path) for path in files) if files else None


def _folder(cfg: Config) -> Path:
    return Path(str(cfg.get("model.model_args.pretrained_model_name_or_path"))).expanduser()


def _parameters(path: Path) -> int:
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a safetensors file: {error}", "the checkpoint is damaged; fetch or save it again"
        ) from error
