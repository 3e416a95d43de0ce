"""Evaluation of a model by every suite that the configuration names, after training, during it, or on its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.config import Config
from expunge.core.errors import Faults
from expunge.core.files import read_json
from expunge.core.run_dir import RunDir
from expunge.evaluation.plan import make_plan
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.scorers import check_scorer
from expunge.evaluation.suite import evaluate_suite
from expunge.evaluation.views import load_views
from expunge.lm import runtime
from expunge.models.load import Loaded, load_model
from expunge.pipelines.assemble import Text, data_root, tell, text_of
from expunge.training.loop import Evaluator

log = logging.getLogger(__name__)

Metrics = dict[str, float | None]

TABLES = "tables"
"""Folder of the tables of a run, by what they depend on."""

# Of `model.model_args`, what does not hold for the model a run has saved: a folder of safetensors, whatever
# it was started from.
NOT_OF_THE_SAVED = ("gguf_file", "revision", "subfolder", "master_dtype")


def suites_of(cfg: Config) -> dict[str, dict[str, Any]]:
    """The suites under `eval`, by name; values that an experiment left for a suite that was switched off are none."""
    return {
        name: dict(suite)
        for name, suite in cfg.section("eval").items()
        if isinstance(suite, Mapping) and "metrics" in suite
    }


def check_suites(cfg: Config, text: Text, encode: bool = True) -> None:
    """Read what the suites will read, the model aside: metrics, rows, retain logs. A fault after hours of training would come late.

    Args:
        cfg: the run's configuration.
        text: tokenizer and template.
        encode: encode the rows as well, which finds the ones that lack a key or whose answer is cut away.

    Raises:
        UserError: all that is wrong, together.
    """
    faults = Faults()
    for name, suite in suites_of(cfg).items():
        with faults.noted():
            plan = make_plan(suite, cfg.switches)
            with faults.noted():
                root, longest = data_root(cfg), longest_known(cfg.section("model.model_args"))
                views = load_views(
                    plan.views, plan.view_names(), text.template, root, cfg.switches("encode"), longest
                )
                for metric in plan.metrics:
                    if "scorer" in metric.options:
                        check_scorer(str(metric.options["scorer"]))
                for view in views.values() if encode else ():
                    with faults.noted():
                        _ = view.encoded
            if suite.get("retain_logs_path") is not None:
                RetainLogs.read(
                    suite["retain_logs_path"],
                    name,
                    split=suite.get("forget_split"),
                    template=text.template.fingerprint,
                )
    faults.raise_found()


def longest_known(model_args: Mapping[str, Any]) -> int | None:
    """Tokens that a model on this machine takes at most, as its `config.json` says, before it is loaded; None where that is not known."""
    path = (
        Path(str(model_args.get("pretrained_model_name_or_path"))).expanduser()
        / str(model_args.get("subfolder") or "")
        / "config.json"
    )
    content = read_json(path) if path.is_file() else {}
    longest = content.get("max_position_embeddings") if isinstance(content, dict) else None
    return longest if isinstance(longest, int) else None


def load_for_evaluation(
    model_args: Mapping[str, Any], adapter: Mapping[str, Any], run: RunDir, notices: list[str]
) -> nn.Module:
    """The model, with its adapter where it has one; `notices`, and what the machine could not do as asked, go into the run's record."""
    loaded = load_model(model_args, adapter, for_training=False, notices=notices)
    tell(notices, already=run.record.notices)
    run.record.notices += [notice for notice in notices if notice not in run.record.notices]
    return loaded.model


def final_evaluation(cfg: Config, run: RunDir) -> Metrics:
    """Evaluate the model that a training run has saved, as `expunge eval` would; files where the run's layout has them."""
    if not _evaluates(cfg) or not runtime.is_primary():
        return {}
    model_args = {
        key: value for key, value in cfg.section("model.model_args").items() if key not in NOT_OF_THE_SAVED
    }
    notices: list[str] = []
    text = text_of(cfg, notices)
    # The adapter that was continued is part of what was saved.
    adapter = {**cfg.section("model.adapter"), "path": None}
    model = load_for_evaluation(
        {**model_args, "pretrained_model_name_or_path": str(run.model_folder)}, adapter, run, notices
    )
    return run_suites(cfg, model, text, run.results_folder(), run)


def check_final_evaluation(cfg: Config, run: RunDir, text: Text | None = None) -> None:
    """Do before training what can be done of the evaluation after it.

    Raises:
        UserError: as `check_suites`.
    """
    if _evaluates(cfg):
        check_suites(cfg, text_of(cfg, []) if text is None else text, encode=not run.resumed)


def _evaluates(cfg: Config) -> bool:
    return bool(suites_of(cfg)) and bool(cfg.get("trainer.args.do_eval", True))


def evaluator_of(cfg: Config, run: RunDir, text: Text, loaded: Loaded) -> Evaluator | None:
    """What the trainer calls every so many steps; None where no suite is configured."""
    if not suites_of(cfg):
        return None

    autocast = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype

    def evaluator(model: nn.Module, step: int) -> Metrics:
        return run_suites(cfg, model, text, run.results_folder(step), run, autocast)

    return evaluator


def run_suites(
    cfg: Config, model: nn.Module, text: Text, folder: Path, run: RunDir, autocast: torch.dtype | None = None
) -> Metrics:
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
            layout=run.layout,
            switches=cfg.switches,
            cache=run.path / TABLES,
            compute_dtype=autocast,
        )
        found |= scores.aggregates()
    return found
