"""A process that is not the first writes nothing into the run folder before the processes have met."""

from __future__ import annotations

from pathlib import Path

import pytest
from mini_runs import model_is

from expunge.config.validate import load_config
from expunge.pipelines import training_run


def test_only_the_first_process_writes_the_pairs(
    start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first process may find a folder that is not empty, and refuse it."""
    words = ("experiment=unlearn/mini/default", "trainer=GradDiff", "task_name=x", "eval=null")
    cfg = load_config("unlearn", [*words, f"paths.output_dir={tmp_path / 'run'}", model_is(start_model)])
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        run = training_run.run_of(cfg)
        prepared = training_run.prepare(cfg, run)
        training_run._paired(cfg, run, prepared.sides, prepared.objective)
        assert (run.path / training_run.PAIRS_FILE).exists() is written
