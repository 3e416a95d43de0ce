"""`expunge eval`: judge a model that exists."""

from __future__ import annotations

from pathlib import Path

from expunge.core.config import Config
from expunge.core.run_dir import RunDir, RunRecord
from expunge.lm import runtime
from expunge.pipelines.evaluation_run import evaluate_saved
from expunge.training.trainer import peak_memory_mb


def run(cfg: Config) -> RunRecord:
    """Evaluate `model` by the suites under `eval`; the result files are at the top of the run folder.

    Raises:
        UserError: whatever the user can mend.
    """
    folder = RunDir(Path(cfg.get("paths.output_dir")), cfg, overwrite=bool(cfg.get("overwrite")), primary=runtime.is_primary())
    runtime.seed_everything(int(cfg.get("seed", 0)))
    try:
        metrics = evaluate_saved(cfg, cfg.section("model.model_args"), folder, folder.path)
    except BaseException:
        folder.finish("failed")
        raise
    folder.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return folder.record
