"""Describe a run before it starts: resolved config, rows, steps, batch, memory."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

from omegaconf import OmegaConf

from expunge.config.checks.data import datasets
from expunge.config.local_data import count_rows, local_file
from expunge.config.method import losses_of
from expunge.config.procedure import stages_of
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.needs import parse_need

UNKNOWN = "unknown until downloaded"
# Bytes per trained parameter: float32 weight, gradient, two Adam moments.
TRAINED_BYTES = 16
GIB = 2**30


def describe(cfg: Config) -> dict[str, str]:
    """Facts about a run, as text, from local files only.

    Args:
        cfg: a validated configuration.

    Returns:
        `config` (the resolved tree as YAML), `model` and `memory`; for a run that trains also `rows`,
        `effective batch` and `steps`. A fact that only the hub knows is "unknown until downloaded".
    """
    facts = {"config": OmegaConf.to_yaml(OmegaConf.create(dict(cfg.tree)))}
    if "trainer" in cfg.tree:
        batch, stages = effective_batch(cfg), stages_of(cfg)
        sides = (
            stages.values()
            if stages
            else [str(cfg.get("data.anchor", "forget")) if cfg.get("mode") == "unlearn" else "train"]
        )
        counts = {side: _rows(cfg, side) for side in sides}
        facts["rows"] = "; ".join(
            (UNKNOWN if rows is None else str(rows)) + (f" ({side})" if stages else "")
            for side, rows in counts.items()
        )
        per_device = cfg.get("trainer.args.per_device_train_batch_size", 8)
        accumulated = cfg.get("trainer.args.gradient_accumulation_steps", 1)
        facts["effective batch"] = (
            f"{batch} = {per_device} per device x {accumulated} accumulated x {world_size()} processes"
        )
        steps = [
            _steps(_with_args(cfg, stage), counts[side]) + f" (stage {stage})"
            for stage, side in stages.items()
        ]
        facts["steps"] = "; ".join(steps) if stages else _steps(cfg, *counts.values())
    parameters = count_parameters(cfg)
    facts["model"] = UNKNOWN if parameters is None else f"{parameters:,} parameters"
    facts["memory"] = UNKNOWN if parameters is None else _memory(cfg, parameters)
    return facts


def world_size() -> int:
    """Number of processes of this run, as set by the launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def effective_batch(cfg: Config) -> int:
    """Rows per optimizer step over all processes; the defaults are those of TrainingArguments."""
    per_device, accumulated = (
        cfg.get("trainer.args.per_device_train_batch_size", 8),
        cfg.get("trainer.args.gradient_accumulation_steps", 1),
    )
    return int(per_device) * int(accumulated) * world_size()


def count_parameters(cfg: Config) -> int | None:
    """Parameters of a local model, from the headers of its safetensors files; None without such files."""
    folder = Path(str(cfg.get("model.model_args.pretrained_model_name_or_path"))).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return sum(_parameters(path) for path in files) if files else None


def _parameters(path: Path) -> int:
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a safetensors file: {error}",
            "the checkpoint is damaged; download or save it again",
        ) from error


def _with_args(cfg: Config, stage: str) -> Config:
    """The configuration of one stage of a procedure: with the stage's own TrainingArguments."""
    own = cfg.section("procedure.args").get(stage) or {}
    args = cfg.section("trainer.args")
    if "num_train_epochs" in own:
        args.pop("max_steps", None)
    return Config({**cfg.tree, "trainer": {**cfg.section("trainer"), "args": {**args, **own}}})


def _rows(cfg: Config, side: str) -> int | None:
    total = 0
    for _, node in datasets(cfg.get(f"data.{side}"), f"data.{side}"):
        hf_args = (node.get("args") or {}).get("hf_args") or {}
        path = local_file(hf_args, str(cfg.get("paths.data_root")))
        count = count_rows(path) if path is not None and "[" not in str(hf_args.get("split")) else None
        if count is None:
            return None
        total += count
    return total


def _steps(cfg: Config, rows: int | None) -> str:
    limit = cfg.get("trainer.args.max_steps")
    if isinstance(limit, int) and limit > 0:
        return str(limit)
    epochs = float(cfg.get("trainer.args.num_train_epochs", 3))
    if rows is None:
        return f"{UNKNOWN}, {epochs:g} epochs"
    micro = math.ceil(rows / (int(cfg.get("trainer.args.per_device_train_batch_size", 8)) * world_size()))
    a_epoch = max(1, math.ceil(micro / int(cfg.get("trainer.args.gradient_accumulation_steps", 1))))
    return f"{math.ceil(epochs * a_epoch)} = {epochs:g} epochs x {a_epoch}"


def _memory(cfg: Config, parameters: int) -> str:
    if "trainer" not in cfg.tree:
        width = 4 if cfg.get("model.model_args.torch_dtype") in (None, "float32", "auto") else 2
        return f"{parameters * width / GIB:.2f} GiB of weights, activations not counted"
    copy = 4 * parameters if _frozen_copy(cfg) else 0
    with_copy = f", {copy / GIB:.2f} GiB of it the frozen reference" if copy else ""
    total = (TRAINED_BYTES * parameters + copy) / GIB
    return f"{total:.2f} GiB of weights, gradients and Adam moments{with_copy}; activations not counted"


def _frozen_copy(cfg: Config) -> bool:
    """Whether a loss needs a quantity of the reference that cached log-probs cannot give."""
    needs = [parse_need(name) for loss in losses_of(cfg) for name in loss.positional]
    return any(need.from_reference and not need.cacheable for need in needs)
