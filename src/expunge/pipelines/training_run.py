"""A run of finetuning or unlearning: data, model, objective, reference, training, final evaluation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from expunge.config.aliases import fit_machine
from expunge.core.config import Config
from expunge.core.errors import Faults
from expunge.core.run_dir import RunDir, RunRecord
from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.pairs import PairedDataset, check_disjoint, load_pairs, pairs_of, save_pairs
from expunge.lm import runtime
from expunge.methods.objective import Objective, objective_of
from expunge.models.load import Loaded, load_model
from expunge.pipelines.assemble import Text, log_notices, sides_of, text_of
from expunge.pipelines.evaluation_run import Evaluation, prepare_evaluation
from expunge.pipelines.forget_order import ByScore, by_score, in_order
from expunge.pipelines.optimizer_setup import stepping_of
from expunge.pipelines.references import reference_of
from expunge.training.arguments import training_arguments
from expunge.training.callbacks import own_listeners
from expunge.training.checkpoint import reporting_full_disk
from expunge.training.launch import check_launch
from expunge.training.listeners import Listener
from expunge.training.loop import Training
from expunge.training.order import order_seed
from expunge.training.pace import peak_memory_mb
from expunge.training.preemption import StopWhenPreempted

log = logging.getLogger(__name__)
PAIRS_FILE = Path("pairs") / "pairs.json"


def run_training(cfg: Config) -> RunRecord:
    """Train, save and evaluate.

    A second call with the same configuration resumes, or evaluates a finished run again.

    Args:
        cfg: mode finetune or unlearn.

    Returns:
        The run's record, as in `run.json`.

    Raises:
        UserError: any fault that the user can correct.
    """
    check_launch(os.environ)
    run = run_of(cfg)
    # Faults of tokenizer, rows, model and suites are reported here, before anything in the folder changes.
    prepared = None if run.trained else prepare(cfg, run)
    evaluation = prepare_evaluation(cfg, run) if prepared is None else prepared.evaluation
    with run.running(made=lambda: bool(run.record.steps)), reporting_full_disk(run.path):
        if prepared is not None:
            training, resume = training_of(cfg, run, prepared)
            with steps_recorded(run, training):
                training.run(resume)
            save_trained(cfg, run, training)
            run.mark_trained()
            # The evaluation loads the saved model. Memory should hold one model at a time.
            del prepared, training
        metrics = evaluation.final()
    run.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return run.record


def run_of(cfg: Config) -> RunDir:
    """The folder of a run, not changed yet.

    Raises:
        UserError: it belongs to another run.
    """
    folder = Path(cfg.get("paths.output_dir"))
    run = RunDir(folder, cfg, overwrite=bool(cfg.get("overwrite")), primary=runtime.is_primary())
    if run.trained:
        log.info("%s is trained already; overwrite=true trains it again", run.path)
    return run


@dataclass(frozen=True)
class Prepared:
    """What a training run reads from outside its folder."""

    objective: Objective
    text: Text
    sides: dict[str, Dataset]
    loaded: Loaded
    notices: list[str]
    evaluation: Evaluation
    by_score: ByScore | None = None


def prepare(cfg: Config, run: RunDir) -> Prepared:
    """Read everything that a training run reads; all faults of rows and suites are reported together."""
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
    seed, model_args, adapter = (
        int(cfg.get("seed", 0)),
        cfg.section("model.model_args"),
        cfg.section("model.adapter"),
    )
    loaded = load_model(model_args, adapter, for_training=True, seed=seed, notices=notices)
    objective.prepare(loaded.model, seed, text.tokenizer)
    return Prepared(objective, text, sides, loaded, notices, evaluation, scored)


def training_of(
    cfg: Config, run: RunDir, prepared: Prepared, listeners: Sequence[Listener] = ()
) -> tuple[Training, str | bool]:
    """The training of a run, ready to start.

    Args:
        cfg: the run's configuration.
        run: its folder, already begun.
        prepared: what the run reads.
        listeners: called before those of `trainer.listeners`.

    Returns:
        The training, and what it resumes from.
    """
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
    log_notices(notices, already=cfg.notices)
    run.record.notices = notices
    run.save()
    # The folder belongs to this run, so a checkpoint in it is one to resume from.
    resume = args.pop("resume_from_checkpoint", None) or True
    args.pop("output_dir", None)
    args.setdefault("run_name", str(cfg.get("task_name")))
    if cfg.engine.cpu_offload:
        # Offloaded values are exchanged on the CPU, for which accelerate alone would start no backend.
        runtime.join_ranks()
    arguments = training_arguments(args, run.model_folder, len(dataset), seed=int(cfg.get("seed", 0)))
    own, callbacks = own_listeners(cfg.bound)
    training = Training(
        loaded.model,
        arguments,
        objective=objective,
        dataset=in_order(prepared.by_score, dataset, run, order_seed(arguments), arguments.num_train_epochs),
        collate=PairCollator(text.pad_id),
        reference=partial(reference_of, cfg, loaded, objective, sides, run, text.pad_id),
        evaluator=prepared.evaluation.during(loaded),
        tokenizer=text.tokenizer,
        callbacks=(StopWhenPreempted(), *callbacks),
        listeners=(*listeners, *own),
        run_dir=run.path,
        layout=run.layout,
        engine=cfg.engine,
        **stepping_of(cfg, run, loaded.model, sides, arguments, text.pad_id),
        **cfg.switches("driver"),
    )
    return training, resume


@contextmanager
def steps_recorded(run: RunDir, training: Training) -> Iterator[None]:
    """Write the number of steps into the run's record, even if the training in this block fails."""
    try:
        yield
    finally:
        run.record.steps = training.state.global_step


def save_trained(cfg: Config, run: RunDir, training: Training) -> None:
    """Write the trained model and its tokenizer into the run's folder."""
    merge = bool(cfg.get("model.adapter.merge"))
    training.parallel.save(training.model, run.model_folder, training.tokenizer, merge=merge)


def _paired(cfg: Config, run: RunDir, sides: Mapping[str, Dataset], objective: Objective) -> PairedDataset:
    """The rows of the run; pairs of two sides are drawn before training and stored with the run."""
    forget, retain = sides.get("forget"), sides.get("retain")
    read = {"forget" if side == "alternate" else side for side in objective.sides}
    anchor = cfg.get("data.anchor", "forget")
    pairs = None
    if forget is not None and retain is not None:
        epochs = math.ceil(float(cfg.get("trainer.args.num_train_epochs", 3)))
        stored = run.path / PAIRS_FILE
        if stored.is_file():
            # The pairs of the interrupted run are checked against the rows: they may have changed on disk.
            pairs = load_pairs(stored)
        else:
            pairs = pairs_of(forget, retain, int(cfg.get("seed", 0)), epochs, anchor)
            if read == {"forget", "retain"} and runtime.is_primary():
                save_pairs(stored, pairs)
    return PairedDataset(forget, retain, pairs, sides=objective.sides)
