"""An unlearning procedure as a run: its trainings, one after the other, in one folder that goes on where it was stopped."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.config.procedure import ARGS
from expunge.core.config import Config
from expunge.core.errors import Faults
from expunge.core.files import read_json
from expunge.core.layout import RECORD_FILE, TRAINED_FILE
from expunge.core.run_dir import RunDir, RunRecord
from expunge.core.sides import SideName
from expunge.data.datasets import Dataset
from expunge.data.pairs import check_disjoint
from expunge.lm import runtime
from expunge.methods.objective import objective_of
from expunge.models.load import Loaded, load_model
from expunge.models.progress_bars import no_progress_bar
from expunge.pipelines.assemble import Text, sides_of, tell, text_of
from expunge.pipelines.evaluation_run import NOT_OF_THE_SAVED, Evaluation, prepare_evaluation
from expunge.pipelines.training_run import (
    Prepared,
    run_of,
    run_training,
    save_trained,
    steps_recorded,
    training_of,
)
from expunge.procedures.base import FINAL, Procedure, Stages, procedure_of
from expunge.training.checkpoint import disk_full_told
from expunge.training.launch import check_launch
from expunge.training.pace import peak_memory_mb

log = logging.getLogger(__name__)

STAGES = "stages"
"""Folder of a procedure's intermediate trainings, one run folder each."""

# Of `trainer.args`, what is about choosing a model by an evaluation, or about one checkpoint: stages have
# neither.
NOT_OF_A_STAGE = (
    "eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "resume_from_checkpoint", "output_dir", "run_name",
)  # fmt: skip


def run_procedure(cfg: Config) -> RunRecord:
    """Carry out `procedure`, save and evaluate. The same configuration again goes on, or evaluates anew what is finished.

    Args:
        cfg: mode unlearn, with a procedure.

    Returns:
        The run's record; its steps are those of all stages.

    Raises:
        UserError: whatever the user can mend.
    """
    check_launch(os.environ)
    procedure, run = procedure_of(cfg.bound[ARGS]), run_of(cfg)
    ready = None if run.trained else _prepare(procedure, cfg, run)
    evaluation = prepare_evaluation(cfg, run) if ready is None else ready.evaluation
    with run.running(made=lambda: bool(run.record.steps) or has_stages(run)), disk_full_told(run.path):
        if ready is not None:
            tell(ready.notices, already=cfg.notices)
            run.record.notices = list(ready.notices)
            run.save()
            spec = procedure.spec
            stages = RunStages(cfg, run, ready.text, spec.stages, evaluation, notices=run.record.notices)
            offered: Stages = stages
            procedure.run(offered, *(ready.sides[side] for side in spec.sides))
            run.record.steps = (run.record.steps or 0) + stages.steps()
            run.record.notices = stages.notices
            if run.primary:
                ready.text.tokenizer.save_pretrained(run.model_folder)
            run.mark_trained()
        metrics = evaluation.final()
    run.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    if not cfg.get("procedure.keep_stages") and run.primary:
        shutil.rmtree(run.path / STAGES, ignore_errors=True)
    return run.record


def has_stages(run: RunDir) -> bool:
    """Whether an intermediate training of the run has begun."""
    return any((run.path / STAGES).glob(f"*/{RECORD_FILE}"))


@dataclass(frozen=True)
class _Ready:
    """What a procedure needs of the world outside its folder, the models aside: its stages load them."""

    text: Text
    sides: dict[str, Dataset]
    notices: list[str]
    evaluation: Evaluation


def _prepare(procedure: Procedure, cfg: Config, run: RunDir) -> _Ready:
    """Read the rows and what the suites read; the faults are told together."""
    notices = list(cfg.notices)
    text = text_of(cfg, notices)
    faults, sides = Faults(), dict[str, Dataset]()
    with faults.noted():
        sides = sides_of(cfg, text, procedure.spec.sides)
        if "forget" in sides and "retain" in sides:
            check_disjoint(sides["forget"].rows, sides["retain"].rows)
    evaluation = Evaluation(cfg, run, ())
    with faults.noted():
        evaluation = prepare_evaluation(cfg, run, text)
    faults.raise_found()
    if FINAL not in procedure.spec.stages and str(
        cfg.get("trainer.args.eval_strategy") or "no"
    ).lower() not in ("no", "false"):
        notices.append(
            f"trainer.args.eval_strategy: {procedure.spec.name} trains no model of its own, so nothing is evaluated on the way"
        )
    return _Ready(text, sides, notices, evaluation)


@dataclass
class RunStages:
    """The stages of a run; see `procedures.base.Stages`.

    Args:
        cfg: of the run.
        run: its folder.
        text: tokenizer and template.
        planned: the procedure's trainings, stage -> side, for what is told.
        evaluation: of the run, for the stage that trains its model.
        notices: what the user has been told; added to.
    """

    cfg: Config
    run: RunDir
    text: Text
    planned: Mapping[str, SideName]
    evaluation: Evaluation
    notices: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.run.path

    @property
    def model_folder(self) -> Path:
        """Where the run's model goes."""
        return self.run.model_folder

    @property
    def stages_folder(self) -> Path:
        """Where intermediate trainings lie."""
        return self.run.path / STAGES

    @property
    def model_args(self) -> Mapping[str, Any]:
        """The start model."""
        return self.cfg.section("model.model_args")

    @property
    def pad_id(self) -> int:
        """Fills short rows."""
        return self.text.pad_id

    def finetuned(
        self, name: str, side: SideName, *, args: Mapping[str, Any] | None = None, whole: bool = False
    ) -> Path:
        """Finetune a copy of the start model on a side's rows, as a run of its own in `stages/NAME`; done once."""
        folder = self.stages_folder / name
        log.info(
            "stage %s of %s: finetuning on the %s rows (%s)", name, ", ".join(self.planned), side, folder
        )
        record = run_training(stage_config(self.cfg, name, side, folder, args or {}, whole=whole))
        self.notices += [notice for notice in record.notices if notice not in self.notices]
        # All ranks wait until the first has saved.
        runtime.from_rank_0(lambda: None)
        return folder

    def finetune(self, rows: Dataset) -> None:
        """Finetune the start model on these rows in the run's own folder."""
        log.info("stage %s of %s: finetuning on %d rows", FINAL, ", ".join(self.planned), len(rows))
        seed = int(self.cfg.get("seed", 0))
        runtime.seed_everything(seed)
        objective = objective_of(self.cfg.bound)
        cfg, notices = replace(self.cfg, notices=tuple(self.notices)), list(self.notices)
        loaded = load_model(
            self.model_args, cfg.section("model.adapter"), for_training=True, seed=seed, notices=notices
        )
        objective.prepare(loaded.model, seed, self.text.tokenizer)
        # In finetuning the rows to learn are the retain side.
        prepared = Prepared(objective, self.text, {"retain": rows}, loaded, notices, self.evaluation)
        training, resume = training_of(cfg, self.run, prepared)
        with steps_recorded(self.run, training):
            training.run(resume)
        save_trained(cfg, self.run, training)
        self.notices = list(self.run.record.notices)

    def load(self, folder: Path | None = None) -> Loaded:
        """The start model, or that of a stage, in `torch_dtype` on this rank's device."""
        args, adapter, notices = dict(self.model_args), self.cfg.section("model.adapter"), list(self.notices)
        if folder is not None:
            args = {key: value for key, value in args.items() if key not in NOT_OF_THE_SAVED} | {
                "pretrained_model_name_or_path": str(folder)
            }
            adapter["path"] = None
        with no_progress_bar():
            return load_model(args, adapter, for_training=False, notices=notices)

    def steps(self) -> int:
        """Optimizer steps of the intermediate trainings, those of an earlier process included."""
        return sum(int(read_json(path)["steps"]) for path in self.stages_folder.glob(f"*/{TRAINED_FILE}"))

    def notice(self, text: str) -> None:
        """Tell the user once, and keep it for the record."""
        if text not in self.notices:
            log.warning("%s", text)
            self.notices.append(text)


def stage_config(
    cfg: Config, name: str, side: SideName, folder: Path, args: Mapping[str, Any], *, whole: bool
) -> Config:
    """The configuration of an intermediate training: finetuning, on a side's rows, in a folder of its own, without an evaluation.

    Args:
        cfg: of the run.
        name: of the stage.
        side: whose rows it learns.
        folder: of the stage.
        args: put over `trainer.args`; a stage that counts in epochs is not bound to the run's `max_steps`,
            nor one that gives `warmup_steps` to its `warmup_epochs`.
        whole: an adapter is merged.
    """
    tree = copy.deepcopy(dict(cfg.tree))
    for key in ("procedure", "reference", "run_layout", "retain_logs_path", "difficulty"):
        tree.pop(key, None)
    tree |= {
        "mode": "finetune",
        "task_name": f"{cfg.get('task_name')}/{name}",
        "overwrite": False,
        "eval": {},
    }
    tree["data"] = {"train": tree["data"][side]}
    tree["paths"] = {**(tree.get("paths") or {}), "output_dir": str(folder)}
    kept = {key: value for key, value in tree["trainer"]["args"].items() if key not in NOT_OF_A_STAGE}
    for given, without in (("num_train_epochs", "max_steps"), ("warmup_steps", "warmup_epochs")):
        if given in args:
            kept.pop(without, None)
    tree["trainer"]["args"] = {**kept, **args}
    if whole and (cfg.get("model.adapter.type") or "none") != "none":
        tree["model"]["adapter"] = {**cfg.section("model.adapter"), "merge": True}
    bound = {
        f"data.train{key.removeprefix(of_side)}" if key.startswith(of_side) else key: value
        for of_side in (f"data.{side}",)
        for key, value in cfg.bound.items()
    }
    return Config(tree, cfg.overrides, cfg.notices, bound)
