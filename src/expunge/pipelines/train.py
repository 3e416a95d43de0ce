"""`expunge train`: finetune a model."""

from __future__ import annotations

from expunge.core.config import Config
from expunge.core.run_dir import RunRecord
from expunge.pipelines.training_run import run_training


def run(cfg: Config) -> RunRecord:
    """Finetune on `data.train` and evaluate, where `eval` names a suite."""
    return run_training(cfg)
