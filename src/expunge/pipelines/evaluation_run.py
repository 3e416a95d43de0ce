"""Evaluation of a model by every suite that the configuration names, after training, during it, or on its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.config import Config
from expunge.core.errors import Faults
from expunge.core.files import read_json
from expunge.core.run_dir import RunDir
from expunge.evaluation.evaluate import evaluate_suite
from expunge.evaluation.suite import Suite, prepare_suite
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


@dataclass(frozen=True)
class Evaluation:
    """The suites of a run, read and encoded once, for every model of it that is evaluated.

    Attributes:
        cfg: the run's configuration.
        run: its folder.
        suites: none where a training run asks for no evaluation.
        notices: for the run's record, of what was read here.
    """

    cfg: Config
    run: RunDir
    suites: tuple[Suite, ...]
    notices: tuple[str, ...] = ()

    def of(self, model: nn.Module, folder: Path, autocast: torch.dtype | None = None) -> Metrics:
        """Every suite on one model, on all ranks together; its tables are cached for the whole run folder."""
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
        """What the trainer calls every so many steps; None where no suite is configured."""
        if not self.suites:
            return None
        autocast = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype
        return lambda model, step: self.of(model, self.run.results_folder(step), autocast)

    def final(self) -> Metrics:
        """Evaluate the model that a training run has saved, as `expunge eval` would; files where the run's layout has them.

        Collective: every rank of the launch calls it.
        """
        if not self.suites or not _at_end(self.cfg):
            return {}
        # A run that was trained before has started no processes yet.
        runtime.join_ranks()
        # The model is there when rank 0 has saved it.
        runtime.from_rank_0(lambda: None)
        model = runtime.agreed(self._saved)
        return self.of(model, self.run.results_folder())

    def _saved(self) -> nn.Module:
        args = self.cfg.section("model.model_args")
        model_args = {key: value for key, value in args.items() if key not in NOT_OF_THE_SAVED}
        model_args["pretrained_model_name_or_path"] = str(self.run.model_folder)
        # The adapter that was continued is part of what was saved.
        adapter = {**self.cfg.section("model.adapter"), "path": None}
        return load_for_evaluation(model_args, adapter, self.run, list(self.notices))


def prepare_evaluation(cfg: Config, run: RunDir, text: Text | None = None) -> Evaluation:
    """Read what the suites of a run will read, the models aside. A fault after hours of training would come late.

    Args:
        cfg: the run's configuration.
        run: its folder. Rows are encoded now, which finds the faulty ones, unless the run goes on: it has
            done so before.
        text: tokenizer and template, where the caller has them.

    Raises:
        UserError: all that is wrong, together.
    """
    suites, notices = suites_of(cfg), list[str]()
    if not suites or not (_at_end(cfg) or _on_the_way(cfg)):
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


def _on_the_way(cfg: Config) -> bool:
    strategy = str(cfg.get("trainer.args.eval_strategy") or "no").lower()
    return strategy not in ("no", "false") or bool(cfg.get("trainer.args.eval_on_start"))
