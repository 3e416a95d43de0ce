"""A training run, finetuning and unlearning alike: data, model, objective, reference, trainer, final evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from expunge.config.aliases import fit_machine
from expunge.core.config import Config
from expunge.core.errors import Faults
from expunge.core.layout import RECORD_FILE
from expunge.core.run_dir import RunDir, RunRecord
from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.pairs import PairedDataset, check_disjoint, load_pairs, pairs_of, save_pairs
from expunge.lm import runtime
from expunge.methods.objective import Objective, objective_of
from expunge.models.load import Loaded, load_model
from expunge.pipelines.assemble import Text, sides_of, tell, text_of
from expunge.pipelines.evaluation_run import Evaluation, prepare_evaluation
from expunge.pipelines.forget_order import ByScore, by_score, in_order
from expunge.pipelines.references import reference_of
from expunge.pipelines.stepping import stepping_of
from expunge.training.arguments import training_arguments
from expunge.training.checkpoint import disk_full_told
from expunge.training.loop import Training
from expunge.training.order import order_seed
from expunge.training.pace import peak_memory_mb

log = logging.getLogger(__name__)
PAIRS_FILE = Path("pairs") / "pairs.json"
STAGES = "stages"
"""Folder of a procedure's intermediate trainings, a run folder each."""


class Evaluated(Protocol):
    """What the preparation of a run gives: the evaluation is part of it."""

    @property
    def evaluation(self) -> Evaluation:
        """The suites of the run."""


P = TypeVar("P", bound=Evaluated)


def run_training(cfg: Config) -> RunRecord:
    """Train, save and evaluate what a configuration says. The same configuration again resumes, or evaluates anew what is finished.

    Args:
        cfg: mode finetune or unlearn.

    Returns:
        The run's record, as in `run.json`.

    Raises:
        UserError: whatever the user can mend.
    """
    return carried_out(cfg, _prepare, _train)


def carried_out(
    cfg: Config, prepare: Callable[[Config, RunDir], P], train: Callable[[Config, RunDir, P], None]
) -> RunRecord:
    """A run that makes a model, from the look at its folder to its record; what `prepare` and `train` do is the verb's own.

    Args:
        cfg: the run's configuration.
        prepare: reads all that the run reads, and touches nothing in the folder.
        train: leaves the model in the folder, and says so with `RunDir.mark_trained`.

    Returns:
        The run's record.

    Raises:
        UserError: whatever the user can mend.
    """
    run = RunDir(
        Path(cfg.get("paths.output_dir")),
        cfg,
        overwrite=bool(cfg.get("overwrite")),
        primary=runtime.is_primary(),
    )
    # What can be wrong with tokenizer, rows, model and suites shows here, before anything in the folder is
    # touched.
    prepared = None if run.trained else prepare(cfg, run)
    if prepared is None:
        log.info("%s is trained already; overwrite=true trains it anew", run.path)
        evaluation = prepare_evaluation(cfg, run)
    else:
        evaluation = prepared.evaluation
    try:
        with disk_full_told(run.path):
            run.begin()
            if prepared is not None:
                train(cfg, run, prepared)
                # The evaluation loads what was saved: two models need not be in memory.
                prepared = None
            metrics = evaluation.final()
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    except Exception:
        run.abandon(keep=bool(run.record.steps) or any((run.path / STAGES).glob(f"*/{RECORD_FILE}")))
        raise
    run.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return run.record


@dataclass(frozen=True)
class Prepared:
    """What a training run needs of the world outside its folder."""

    objective: Objective
    text: Text
    sides: dict[str, Dataset]
    loaded: Loaded
    notices: list[str]
    evaluation: Evaluation
    by_score: ByScore | None = None


def _prepare(cfg: Config, run: RunDir) -> Prepared:
    """Read everything that the run reads; the faults of rows and suites are told together."""
    notices = list(cfg.notices)
    runtime.seed_everything(int(cfg.get("seed", 0)))
    objective = objective_of(cfg.bound)
    text = text_of(cfg, notices)
    faults, sides = Faults(), dict[str, Dataset]()
    scored: ByScore | None = None
    evaluation = Evaluation(cfg, run, ())
    with faults.noted():
        sides, scored = by_score(cfg, sides_of(cfg, text, objective.sides), objective, notices)
        if "forget" in sides and "retain" in sides:
            check_disjoint(sides["forget"].rows, sides["retain"].rows)
    with faults.noted():
        evaluation = prepare_evaluation(cfg, run, text)
    faults.raise_found()
    seed = int(cfg.get("seed", 0))
    loaded = load_model(
        cfg.section("model.model_args"),
        cfg.section("model.adapter"),
        for_training=True,
        seed=seed,
        notices=notices,
    )
    objective.prepare(loaded.model, seed, text.tokenizer)
    return Prepared(objective, text, sides, loaded, notices, evaluation, scored)


def _train(cfg: Config, run: RunDir, prepared: Prepared) -> None:
    fit(cfg, run, prepared)
    run.mark_trained()


def fit(cfg: Config, run: RunDir, prepared: Prepared) -> None:
    """From rows and model to the trained model in the run folder; marking it as the run's is the caller's."""
    objective, text, sides = prepared.objective, prepared.text, prepared.sides
    loaded, notices = prepared.loaded, prepared.notices
    dataset = _paired(cfg, run, sides, objective)
    args, changed = fit_machine(
        cfg.section("trainer.args"),
        cuda=torch.cuda.is_available(),
        cpu_bf16=runtime.supports_bf16(torch.device("cpu")),
    )
    notices += changed
    if loaded.compute_dtype is torch.bfloat16:
        args.setdefault("bf16", True)
    elif loaded.compute_dtype is torch.float16:
        args.setdefault("fp16", True)
    tell(notices, already=cfg.notices)
    run.record.notices = notices
    run.save()
    # The folder belongs to this very run, so a checkpoint in it is one to go on from.
    resume = args.pop("resume_from_checkpoint", None) or True
    args.pop("output_dir", None)
    # The name that a logger shows the run under.
    args.setdefault("run_name", str(cfg.get("task_name")))
    arguments = training_arguments(args, run.model_folder, len(dataset), seed=int(cfg.get("seed", 0)))
    training = Training(
        loaded.model,
        arguments,
        objective=objective,
        dataset=in_order(prepared.by_score, dataset, run, order_seed(arguments), arguments.num_train_epochs),
        collate=PairCollator(text.pad_id),
        reference=reference_of(cfg, loaded, objective, sides, run, text.pad_id),
        evaluator=prepared.evaluation.during(loaded),
        tokenizer=text.tokenizer,
        run_dir=run.path,
        layout=run.layout,
        **stepping_of(cfg, run, loaded.model, sides, arguments, text.pad_id),
        **cfg.switches("driver"),
    )
    try:
        training.run(resume)
    finally:
        run.record.steps = training.state.global_step
    training.parallel.save(
        loaded.model, run.model_folder, text.tokenizer, merge=bool(cfg.get("model.adapter.merge"))
    )


def _paired(cfg: Config, run: RunDir, sides: Mapping[str, Dataset], objective: Objective) -> PairedDataset:
    """The rows of the run; where two sides meet, their pairs are drawn beforehand and stored with the run."""
    forget, retain = sides.get("forget"), sides.get("retain")
    read = {"forget" if side == "alternate" else side for side in objective.sides}
    anchor = cfg.get("data.anchor", "forget")
    pairs = None
    if forget is not None and retain is not None:
        epochs = math.ceil(float(cfg.get("trainer.args.num_train_epochs", 3)))
        stored = run.path / PAIRS_FILE
        # Rows that changed on disk since a run was interrupted are other rows: its own pairs refuse them.
        pairs = (
            load_pairs(stored)
            if stored.is_file()
            else pairs_of(forget, retain, int(cfg.get("seed", 0)), epochs, anchor)
        )
        if read == {"forget", "retain"} and runtime.rank() == 0 and not stored.is_file():
            save_pairs(stored, pairs)
    return PairedDataset(forget, retain, pairs, sides=objective.sides)
