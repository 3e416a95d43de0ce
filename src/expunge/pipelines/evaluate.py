"""`expunge eval`: judge a model that exists."""

from __future__ import annotations

from pathlib import Path

from expunge.core.config import Config
from expunge.core.run_dir import RunDir, RunRecord
from expunge.lm import runtime
from expunge.pipelines.assemble import text_of
from expunge.pipelines.evaluation_run import TABLES, check_suites, load_for_evaluation, run_suites
from expunge.training.checkpoint import disk_full_told
from expunge.training.pace import peak_memory_mb


def run(cfg: Config) -> RunRecord:
    """Evaluate `model` by the suites under `eval`; the result files are at the top of the run folder.

    Raises:
        UserError: whatever the user can mend.
    """
    folder = RunDir(
        Path(cfg.get("paths.output_dir")),
        cfg,
        overwrite=bool(cfg.get("overwrite")),
        primary=runtime.is_primary(),
    )
    runtime.seed_everything(int(cfg.get("seed", 0)))
    notices: list[str] = []
    text = text_of(cfg, notices)
    check_suites(cfg, text, encode=not folder.resumed)
    model = load_for_evaluation(
        cfg.section("model.model_args"), cfg.section("model.adapter"), folder, notices
    )
    try:
        with disk_full_told(folder.path):
            folder.begin()
            metrics = run_suites(cfg, model, text, folder.path, folder)
    except KeyboardInterrupt:
        folder.finish("interrupted")
        raise
    except Exception:
        folder.abandon(keep=any((folder.path / TABLES).glob("*.json")))
        raise
    folder.finish("complete", metrics=metrics, peak_memory_mb=peak_memory_mb())
    return folder.record
