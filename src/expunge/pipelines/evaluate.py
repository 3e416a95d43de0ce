"""`expunge eval`: evaluate a model that exists."""

from __future__ import annotations

from torch import nn

from expunge.core.config import Config
from expunge.core.run_dir import RunRecord
from expunge.lm import runtime
from expunge.pipelines.evaluation_run import TABLES, Evaluation, load_for_evaluation, prepare_evaluation
from expunge.pipelines.training_run import run_of
from expunge.training.checkpoint import reporting_full_disk
from expunge.training.pace import peak_memory_mb


def run(cfg: Config) -> RunRecord:
    """Evaluate `model` with the suites under `eval`; the result files are at the top of the run folder.

    Under torchrun the rows are split over its processes, and the first process writes.

    Raises:
        UserError: any fault that the user can correct.
    """
    runtime.join_ranks()
    evaluation, model = runtime.agreed(lambda: _prepared(cfg))
    folder = evaluation.run
    with (
        folder.running(made=lambda: any((folder.path / TABLES).glob("*.json"))),
        reporting_full_disk(folder.path),
    ):
        metrics = evaluation.of(model, folder.path)
    folder.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return folder.record


def _prepared(cfg: Config) -> tuple[Evaluation, nn.Module]:
    """Read everything, the model last."""
    folder = run_of(cfg)
    runtime.seed_everything(int(cfg.get("seed", 0)))
    evaluation = prepare_evaluation(cfg, folder)
    model_args, adapter = cfg.section("model.model_args"), cfg.section("model.adapter")
    model = load_for_evaluation(
        model_args, adapter, folder, list(evaluation.notices), cfg.engine, evaluation.needs_gradients
    )
    return evaluation, model
