"""Describe a run before it starts: resolved config, rows, steps, batch, memory."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import OmegaConf

from expunge.config.datasets import datasets
from expunge.config.job import job_of, optimizer_steps
from expunge.config.local_data import count_rows, local_file
from expunge.config.procedure import stages_of
from expunge.config.shape import count_parameters, local_shape
from expunge.core.config import Config
from expunge.core.footprint import gib, peak
from expunge.core.job import Shape

UNKNOWN = "unknown until downloaded"


def describe(cfg: Config) -> dict[str, str]:
    """Facts about a run, as text, from local files only.

    Returns:
        `config` (the resolved tree as YAML), `model` and `memory`; for a run that trains also `rows`,
        `effective batch` and `steps`. A fact that only the hub knows is "unknown until downloaded".
    """
    facts = {"config": OmegaConf.to_yaml(OmegaConf.create(dict(cfg.tree)))}
    if "trainer" in cfg.tree:
        stages = stages_of(cfg)
        anchor = str(cfg.get("data.anchor", "forget")) if cfg.get("mode") == "unlearn" else "train"
        counts = {side: rows_of(cfg, side) for side in stages.values() or [anchor]}
        facts["rows"] = "; ".join(
            (UNKNOWN if rows is None else str(rows)) + (f" ({side})" if stages else "")
            for side, rows in counts.items()
        )
        per_device = cfg.get("trainer.args.per_device_train_batch_size", 8)
        accumulated = cfg.get("trainer.args.gradient_accumulation_steps", 1)
        batch = int(per_device) * int(accumulated) * cfg.ranks
        facts["effective batch"] = (
            f"{batch} = {per_device} per device x {accumulated} accumulated x {cfg.ranks} processes"
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


def _with_args(cfg: Config, stage: str) -> Config:
    """The configuration of one stage of a procedure: with the stage's own TrainingArguments."""
    own = cfg.section("procedure.args").get(stage) or {}
    args = cfg.section("trainer.args")
    if "num_train_epochs" in own:
        args.pop("max_steps", None)
    return replace(cfg, tree={**cfg.tree, "trainer": {**cfg.section("trainer"), "args": {**args, **own}}})


def rows_of(cfg: Config, side: str) -> int | None:
    """Rows of a side of the data, where local files tell; else None."""
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
    found = optimizer_steps(cfg, rows, cfg.ranks)
    epochs = float(cfg.get("trainer.args.num_train_epochs", 3))
    if found is None:
        return f"{UNKNOWN}, {epochs:g} epochs"
    limit = cfg.get("trainer.args.max_steps")
    if isinstance(limit, int) and limit > 0:
        return str(limit)
    return f"{found[0]} = {epochs:g} epochs x {found[1]}"


def _memory(cfg: Config, parameters: int) -> str:
    if "trainer" not in cfg.tree:
        width = 4 if cfg.get("model.model_args.torch_dtype") in (None, "float32", "auto") else 2
        return f"{gib(parameters * width)} GiB of weights, activations not counted"
    shape = local_shape(cfg)
    if shape is None:
        # The states of the weights can be counted all the same.
        shape = Shape(0, 0, 0, 0, 0, 0, 0, tied=True, parameters=parameters)
    job, ranks = job_of(cfg, shape), cfg.ranks
    found = peak(job, ranks)
    parts = ", ".join(f"{name} {gib(size)}" for name, size in found.named().items())
    load = job.loads[0]
    rows = (
        f"rows assumed to have {load.tokens} tokens and {load.labels // load.rows} labels"
        if shape.layers
        else "activations not counted, config.json does not state the model's shape"
    )
    return (
        f"{gib(found.total)} GiB per rank at its peak, {ranks} x {job.engine} ({parts}; by formulas, {rows});"
        " see `expunge plan`"
    )
