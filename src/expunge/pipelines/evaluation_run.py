"""Evaluation of a model by the configured suites: after training, during training, or on its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.config import Config
from expunge.core.engine import Engine
from expunge.core.errors import Faults, UserError
from expunge.core.files import read_json
from expunge.core.run_dir import RunDir
from expunge.evaluation.collect.gradnorms import GradientNorms
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.suite import Suite, prepare_suite
from expunge.lm import runtime
from expunge.models.load import Loaded, load_model
from expunge.pipelines.assemble import Text, data_root, log_notices, text_of
from expunge.training.launch import parallel_of
from expunge.training.loop import Evaluator

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]

TABLES = "tables"
"""Folder of a run's cached tables."""
NOT_OF_THE_SAVED = ("gguf_file", "revision", "subfolder", "master_dtype")
"""Keys of `model.model_args` that only apply to the start model; a saved model is a folder of safetensors."""


def saved_model_args(model_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `model.model_args` that load what a run saved in `folder`."""
    kept = {key: value for key, value in model_args.items() if key not in NOT_OF_THE_SAVED}
    return {**kept, "pretrained_model_name_or_path": str(folder)}


def longest_known(model_args: Mapping[str, Any]) -> int | None:
    """Most tokens that a local model takes, from its `config.json`; None = unknown."""
    folder = Path(str(model_args.get("pretrained_model_name_or_path"))).expanduser()
    path = folder / str(model_args.get("subfolder") or "") / "config.json"
    content = read_json(path) if path.is_file() else {}
    longest = content.get("max_position_embeddings") if isinstance(content, dict) else None
    return longest if isinstance(longest, int) else None


def load_for_evaluation(
    model_args: Mapping[str, Any],
    adapter: Mapping[str, Any],
    run: RunDir,
    notices: list[str],
    engine: Engine,
    gradients: bool,
) -> nn.Module:
    """The model with its adapter, if any; its weights are split if the engine does that.

    `notices` and those of loading go into the run's record. With `gradients`, split weights have gradients.

    Raises:
        UserError: as in `load_model`; or split weights of several dtypes should have gradients.
    """
    parallel = parallel_of(engine, str(model_args.get("torch_dtype")))
    if parallel.sharded:
        # Each layer moves to its device when it is split.
        model_args = {**model_args, "device_map": "cpu"}
    loaded = load_model(model_args, adapter, for_training=False, notices=notices)
    log_notices(notices, already=run.record.notices)
    run.record.notices += [notice for notice in notices if notice not in run.record.notices]
    if parallel.sharded:
        # Split weights are frozen for good or not at all.
        loaded.model.requires_grad_(gradients)
        dtypes = {str(value.dtype) for value in loaded.model.parameters()}
        if gradients and len(dtypes) > 1:
            raise UserError(
                f"gradient norms of split weights need one dtype, the model has {', '.join(sorted(dtypes))}",
                "give model.model_args.torch_dtype=float32, or use one process",
            )
    parallel.shard(loaded.model)
    return loaded.model


@dataclass(frozen=True)
class Evaluation:
    """The suites of a run, read and encoded once, for all models that the run evaluates.

    Attributes:
        cfg: the run's configuration.
        run: its folder.
        suites: empty if the run asks for no evaluation.
        notices: notices of reading the suites, for the run's record.
    """

    cfg: Config
    run: RunDir
    suites: tuple[Suite, ...]
    notices: tuple[str, ...] = ()

    @property
    def needs_gradients(self) -> bool:
        """Whether a suite asks for the norms of gradients."""
        return any(
            item.kind == GradientNorms.kind for suite in self.suites for item in suite.plan.collections
        )

    def of(self, model: nn.Module, folder: Path, autocast: torch.dtype | None = None) -> Metrics:
        """Run every suite on one model, on all ranks together; the run folder caches the tables."""
        found: Metrics = {}
        for suite in self.suites:
            scores = evaluate_suite(
                suite,
                model,
                out_dir=folder,
                layout=self.run.layout,
                cache=self.run.path / TABLES,
                compute_dtype=autocast,
            )
            found |= scores.aggregates()
        return found

    def during(self, loaded: Loaded) -> Evaluator | None:
        """What the training loop calls to evaluate; None if no suite is configured."""
        if not self.suites:
            return None
        autocast = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype
        return lambda model, step: self.of(model, self.run.results_folder(step), autocast)

    def final(self) -> Metrics:
        """Evaluate the model that a training run has saved, as `expunge eval` would. All ranks call it."""
        if not self.suites or not _at_end(self.cfg):
            return {}
        # In a run that was trained before, this is the first step that needs all processes.
        runtime.join_ranks()
        # Wait until rank 0 has saved the model.
        runtime.from_rank_0(lambda: None)
        model_args = saved_model_args(self.cfg.section("model.model_args"), self.run.model_folder)
        # What was saved contains the adapter that was continued.
        adapter = {**self.cfg.section("model.adapter"), "path": None}
        model = runtime.agreed(
            lambda: load_for_evaluation(
                model_args, adapter, self.run, list(self.notices), self.cfg.engine, self.needs_gradients
            )
        )
        return self.of(model, self.run.results_folder())


def prepare_evaluation(cfg: Config, run: RunDir, text: Text | None = None) -> Evaluation:
    """Read all that the suites read, except models, so that faults are reported before hours of training.

    Args:
        cfg: the run's configuration.
        run: its folder. Rows are encoded now, which finds faulty rows, unless the run resumes: then they were
            checked before.
        text: tokenizer and template, if the caller has loaded them.

    Raises:
        UserError: all faults of all suites together.
    """
    # An experiment may leave values for a suite that was switched off: such a section has no metrics.
    suites = {
        name: dict(suite)
        for name, suite in cfg.section("eval").items()
        if isinstance(suite, Mapping) and "metrics" in suite
    }
    notices = list[str]()
    during = str(cfg.get("trainer.args.eval_strategy") or "no").lower() not in ("no", "false")
    during = during or bool(cfg.get("trainer.args.eval_on_start"))
    if not suites or not (_at_end(cfg) or during):
        return Evaluation(cfg, run, ())
    text = text_of(cfg, notices) if text is None else text
    longest = longest_known(cfg.section("model.model_args"))
    faults, ready = Faults(), list[Suite]()
    for name, section in suites.items():
        with faults.noted():
            suite = prepare_suite(
                name,
                section,
                template=text.template,
                data_root=data_root(cfg),
                switches=cfg.switches,
                bound=cfg.bound,
                longest=longest,
                encode=not run.resumed,
            )
            ready.append(suite)
    faults.raise_found()
    return Evaluation(cfg, run, tuple(ready), tuple(notices))


def _at_end(cfg: Config) -> bool:
    return bool(cfg.get("trainer.args.do_eval", True))
