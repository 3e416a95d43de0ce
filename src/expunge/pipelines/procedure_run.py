"""An unlearning procedure as a run: its trainings, one after the other, in one folder that can be resumed."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.config.procedure import ARGS, FINAL
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
from expunge.pipelines.assemble import Text, log_notices, sides_of, text_of
from expunge.pipelines.evaluation_run import Evaluation, prepare_evaluation, saved_model_args
from expunge.pipelines.training_run import (
    Prepared,
    run_of,
    run_training,
    save_trained,
    steps_recorded,
    training_of,
)
from expunge.procedures.base import Procedure, Stages, procedure_of
from expunge.training.checkpoint import reporting_full_disk
from expunge.training.launch import check_launch
from expunge.training.pace import peak_memory_mb

log = logging.getLogger(__name__)

STAGES = "stages"
"""Folder of a procedure's intermediate trainings; each has its own run folder in it."""
NOT_OF_A_STAGE = (
    "eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "resume_from_checkpoint", "output_dir", "run_name",
)  # fmt: skip
"""Keys of `trainer.args` that stages do not use: they have no evaluation and no checkpoint to start from."""


def run_procedure(cfg: Config) -> RunRecord:
    """Carry out `procedure`, save and evaluate.

    A second call with the same configuration resumes, or evaluates a finished run again.

    Returns:
        The run's record; it counts the steps of all stages.

    Raises:
        UserError: any fault that the user can correct.
    """
    check_launch(os.environ)
    procedure, run = procedure_of(cfg.bound[ARGS]), run_of(cfg)
    prepared = None if run.trained else _prepare(procedure, cfg, run)
    evaluation = prepare_evaluation(cfg, run) if prepared is None else prepared[0].evaluation

    def begun() -> bool:
        return bool(run.record.steps) or any((run.path / STAGES).glob(f"*/{RECORD_FILE}"))

    with run.running(made=begun), reporting_full_disk(run.path):
        if prepared is not None:
            stages, sides = prepared
            log_notices(stages.notices, already=cfg.notices)
            run.record.notices = stages.notices
            run.save()
            offered: Stages = stages
            procedure.run(offered, *(sides[side] for side in procedure.spec.sides))
            run.record.steps = (run.record.steps or 0) + stages.steps()
            run.record.notices = stages.notices
            if run.primary:
                stages.text.tokenizer.save_pretrained(run.model_folder)
            run.mark_trained()
        metrics = evaluation.final()
    run.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    if not cfg.get("procedure.keep_stages") and run.primary:
        shutil.rmtree(run.path / STAGES, ignore_errors=True)
    return run.record


def _prepare(procedure: Procedure, cfg: Config, run: RunDir) -> tuple[RunStages, dict[str, Dataset]]:
    """Read the rows and what the suites read, and report all faults together. The stages load the models."""
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
    strategy = str(cfg.get("trainer.args.eval_strategy") or "no").lower()
    if FINAL not in procedure.spec.stages and strategy not in ("no", "false"):
        notices.append(
            f"trainer.args.eval_strategy={strategy} is ignored: no stage of {procedure.spec.name} trains the"
            " final model, so it can only be evaluated at the end"
        )
    return RunStages(cfg, run, text, procedure.spec.stages, evaluation, notices), sides


class RunStages:
    """The stages of a run; see `procedures.base.Stages`.

    Args:
        cfg: the run's configuration.
        run: its folder.
        text: tokenizer and template.
        planned: the procedure's trainings, stage -> side, for log lines.
        evaluation: used by the stage that trains the run's model.
        notices: notices of the run so far; new ones are appended.
    """

    def __init__(
        self,
        cfg: Config,
        run: RunDir,
        text: Text,
        planned: Mapping[str, SideName],
        evaluation: Evaluation,
        notices: list[str],
    ) -> None:
        self.cfg, self.run, self.text, self.evaluation, self.notices = cfg, run, text, evaluation, notices
        self.names = ", ".join(planned)
        self.folder, self.model_folder, self.stages_folder = run.path, run.model_folder, run.path / STAGES
        self.model_args, self.pad_id = cfg.section("model.model_args"), text.pad_id

    def finetuned(
        self, name: str, side: SideName, *, args: Mapping[str, Any] | None = None, whole: bool = False
    ) -> Path:
        """Finetune a copy of the start model on a side's rows, as a run in `stages/NAME`; done once."""
        folder = self.stages_folder / name
        log.info("stage %s of %s: finetuning on the %s rows (%s)", name, self.names, side, folder)
        record = run_training(stage_config(self.cfg, name, side, folder, args or {}, whole=whole))
        self.notices += [notice for notice in record.notices if notice not in self.notices]
        # All ranks wait until the first has saved.
        runtime.from_rank_0(lambda: None)
        return folder

    def finetune(self, rows: Dataset) -> None:
        """Finetune the start model on these rows in the run's own folder."""
        log.info("stage %s of %s: finetuning on %d rows", FINAL, self.names, len(rows))
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
        """The start model, or the model of a stage, in `torch_dtype` on this rank's device."""
        args, adapter = self.model_args, self.cfg.section("model.adapter")
        if folder is not None:
            args, adapter["path"] = saved_model_args(args, folder), None
        with no_progress_bar():
            return load_model(args, adapter, for_training=False, notices=list(self.notices))

    def steps(self) -> int:
        """Optimizer steps of all intermediate trainings, including those of an earlier process."""
        return sum(int(read_json(path)["steps"]) for path in self.stages_folder.glob(f"*/{TRAINED_FILE}"))

    def notice(self, text: str) -> None:
        """Log a notice once, and keep it for the run's record."""
        if text not in self.notices:
            log.warning("%s", text)
            self.notices.append(text)


def stage_config(
    cfg: Config, name: str, side: SideName, folder: Path, args: Mapping[str, Any], *, whole: bool
) -> Config:
    """The configuration of an intermediate training: finetuning in its own folder, without an evaluation.

    Args:
        cfg: configuration of the run.
        name: name of the stage.
        side: the side whose rows it learns.
        folder: folder of the stage.
        args: overrides of `trainer.args`; `num_train_epochs` removes the run's `max_steps`, and
            `warmup_steps` removes its `warmup_epochs`.
        whole: merge the adapter into the model.
    """
    tree = copy.deepcopy(dict(cfg.tree))
    for key in ("procedure", "reference", "run_layout", "retain_logs_path", "difficulty"):
        tree.pop(key, None)
    task = f"{cfg.get('task_name')}/{name}"
    tree |= {"mode": "finetune", "task_name": task, "overwrite": False, "eval": {}}
    tree["data"] = {"train": tree["data"][side]}
    tree["paths"] = {**(tree.get("paths") or {}), "output_dir": str(folder)}
    kept = {key: value for key, value in tree["trainer"]["args"].items() if key not in NOT_OF_A_STAGE}
    for given, without in (("num_train_epochs", "max_steps"), ("warmup_steps", "warmup_epochs")):
        if given in args:
            kept.pop(without, None)
    tree["trainer"]["args"] = {**kept, **args}
    if whole and (cfg.get("model.adapter.type") or "none") != "none":
        tree["model"]["adapter"] = {**cfg.section("model.adapter"), "merge": True}
    own = f"data.{side}"
    bound = {
        f"data.train{key.removeprefix(own)}" if key.startswith(own) else key: value
        for key, value in cfg.bound.items()
    }
    return replace(cfg, tree=tree, bound=bound)
