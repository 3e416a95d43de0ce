"""Evaluation of a model by every suite that the configuration names, after training, during it, or on its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.config import Config
from expunge.core.run_dir import RunDir
from expunge.evaluation.suite import evaluate_suite
from expunge.lm import runtime
from expunge.models.load import Loaded, load_model
from expunge.pipelines.assemble import Text, data_root, tell, text_of
from expunge.training.trainer import Evaluator

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]

# Of `model.model_args`, what does not hold for the model a run has saved: a folder of safetensors, whatever it was started from.
NOT_OF_THE_SAVED = ("gguf_file", "revision", "subfolder", "master_dtype")


def suites_of(cfg: Config) -> dict[str, dict[str, Any]]:
    """The suites under `eval`, by name."""
    return {name: dict(suite) for name, suite in cfg.section("eval").items() if isinstance(suite, Mapping)}


def evaluate_saved(cfg: Config, model_args: Mapping[str, Any], run: RunDir, folder: Path) -> Metrics:
    """Load a model for evaluation and run every suite; result files go to `folder`."""
    notices: list[str] = []
    text = text_of(cfg, notices)
    loaded = load_model(model_args, for_training=False, notices=notices)
    tell(notices, already=run.record.notices)
    run.record.notices += [notice for notice in notices if notice not in run.record.notices]
    return _run_suites(cfg, loaded.model, text, folder, run)


def final_evaluation(cfg: Config, run: RunDir) -> Metrics:
    """Evaluate the model that a training run has saved, as `expunge eval` would; files in `evals/`."""
    if not suites_of(cfg) or not cfg.get("trainer.args.do_eval", True) or not runtime.is_primary():
        return {}
    model_args = {key: value for key, value in cfg.section("model.model_args").items() if key not in NOT_OF_THE_SAVED}
    return evaluate_saved(cfg, {**model_args, "pretrained_model_name_or_path": str(run.path)}, run, run.path / "evals")


def evaluator_of(cfg: Config, run: RunDir, text: Text, loaded: Loaded) -> Evaluator | None:
    """What the trainer calls every so many steps; None where no suite is configured."""
    if not suites_of(cfg):
        return None

    autocast = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype

    def evaluator(model: nn.Module, step: int) -> Metrics:
        return _run_suites(cfg, model, text, run.path / "evals" / f"step-{step}", run, autocast)

    return evaluator


def _run_suites(cfg: Config, model: nn.Module, text: Text, folder: Path, run: RunDir, autocast: torch.dtype | None = None) -> Metrics:
    """Every suite on one model; its tables are cached for the whole run folder."""
    found: Metrics = {}
    for name, suite in suites_of(cfg).items():
        scores = evaluate_suite(
            model,
            text.tokenizer,
            suite,
            suite=name,
            template=text.template,
            data_root=data_root(cfg),
            out_dir=folder,
            switches=cfg.switches,
            cache=run.path / "tables",
            compute_dtype=autocast,
        )
        found |= scores.aggregates()
    return found
