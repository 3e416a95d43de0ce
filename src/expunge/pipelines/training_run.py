"""A training run, finetuning and unlearning alike: data, model, objective, reference, trainer, final evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from expunge.config.aliases import fit_machine
from expunge.core.config import Config
from expunge.core.run_dir import RunDir, RunRecord
from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, check_disjoint, pairs_of, save_pairs
from expunge.lm import runtime
from expunge.methods.objective import Objective, build_objective
from expunge.models.load import Loaded, load_model
from expunge.models.quiet import no_progress_bar
from expunge.models.reference import CachedReference, FrozenCopy, plan_reference
from expunge.pipelines.assemble import Text, sides_of, tell, text_of
from expunge.pipelines.evaluation_run import evaluator_of, final_evaluation
from expunge.training.arguments import training_arguments
from expunge.training.trainer import UnlearnTrainer, peak_memory_mb

log = logging.getLogger(__name__)


def run_training(cfg: Config) -> RunRecord:
    """Train, save and evaluate what a configuration says. The same configuration again resumes, or evaluates anew what is finished.

    Args:
        cfg: mode finetune or unlearn.

    Returns:
        The run's record, as in `run.json`.

    Raises:
        UserError: whatever the user can mend.
    """
    run = RunDir(Path(cfg.get("paths.output_dir")), cfg, overwrite=bool(cfg.get("overwrite")), primary=runtime.is_primary())
    try:
        if run.trained:
            log.info("%s is trained already; overwrite=true trains it anew", run.path)
        else:
            _train(cfg, run)
        metrics = final_evaluation(cfg, run)
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    except Exception:
        run.finish("failed")
        raise
    run.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return run.record


def _train(cfg: Config, run: RunDir) -> None:
    """From the configuration to the trained model in the run folder."""
    seed, notices = int(cfg.get("seed", 0)), list(cfg.notices)
    runtime.seed_everything(seed)
    objective = build_objective(cfg.get("trainer.handler"), cfg.section("trainer.method_args"), cfg.switches)
    text = text_of(cfg, notices)
    sides = sides_of(cfg, text, objective.sides)
    if "forget" in sides and "retain" in sides:
        check_disjoint(sides["forget"].rows, sides["retain"].rows)
    loaded = load_model(cfg.section("model.model_args"), for_training=True, notices=notices)
    dataset = _paired(cfg, run, sides, objective)
    args, changed = fit_machine(
        cfg.section("trainer.args"), cuda=torch.cuda.is_available(), cpu_bf16=runtime.supports_bf16(torch.device("cpu"))
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
    arguments = training_arguments(args, run.path, len(dataset), seed=seed)
    trainer = UnlearnTrainer(
        loaded.model,
        arguments,
        objective=objective,
        dataset=dataset,
        collate=PairCollator(text.pad_id),
        reference=_reference(loaded, objective, sides, dataset, run, text),
        evaluator=evaluator_of(cfg, run, text, loaded),
        processing_class=text.tokenizer,
        **cfg.switches("driver"),
    )
    trainer.train(resume_from_checkpoint=resume)
    run.record.steps = trainer.state.global_step
    if run.primary:
        with no_progress_bar():
            text.tokenizer.save_pretrained(run.path)
            loaded.model.save_pretrained(run.path)
    run.mark_trained()


def _paired(cfg: Config, run: RunDir, sides: Mapping[str, Dataset], objective: Objective) -> PairedDataset:
    """The rows of the run; where two sides meet, their pairs are drawn beforehand and stored with the run."""
    forget, retain = sides.get("forget"), sides.get("retain")
    read = {"forget" if side == "alternate" else side for side in objective.sides}
    anchor = cfg.get("data.anchor", "forget")
    pairs = None
    if forget is not None and retain is not None:
        epochs = math.ceil(float(cfg.get("trainer.args.num_train_epochs", 3)))
        pairs = pairs_of(forget, retain, int(cfg.get("seed", 0)), epochs, anchor)
        if read == {"forget", "retain"} and runtime.rank() == 0:
            save_pairs(run.path / "pairs.json", pairs)
    return PairedDataset(forget, retain, pairs, sides=objective.sides)


def _reference(
    loaded: Loaded, objective: Objective, sides: Mapping[str, Dataset], dataset: PairedDataset, run: RunDir, text: Text
) -> CachedReference | FrozenCopy | None:
    """The model before unlearning, as cheaply as the objective allows; None where nothing reads it."""
    plan = plan_reference(objective.needs)
    dtype = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype
    if plan == "none":
        return None
    if plan == "frozen":
        log.info("the objective reads the reference's whole distribution: a frozen copy stays in memory")
        return FrozenCopy(loaded.model, autocast_dtype=dtype)
    wanted = {need.side for need in objective.reference_needs}
    views: dict[str, list[Encoded]] = {side: data.encoded for side, data in sides.items() if side in wanted}
    if "alternate" in wanted:
        views["alternate"] = sides["forget"].alternates or []
    model: nn.Module = loaded.model
    model.to(runtime.device())
    log.info("caching the reference's log-probs of %d rows in %s", sum(map(len, views.values())), run.path / "reference")
    return CachedReference.compute(model, views, run.path / "reference", pad_id=text.pad_id, autocast_dtype=dtype)
