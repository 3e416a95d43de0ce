"""`expunge unlearn`: make a model forget."""

from __future__ import annotations

from expunge.core.config import Config
from expunge.core.run_dir import RunRecord
from expunge.pipelines.training_run import run_training


def run(cfg: Config) -> RunRecord:
    """Unlearn `data.forget`, keep `data.retain`, and evaluate."""
    return run_training(cfg)
