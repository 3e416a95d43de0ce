"""`eval.py` as the field calls it, on a handful of rows: values and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.main import script


@pytest.fixture
def command(tiny_model: Any, tiny_tokenizer: Any, data_root: Path, tmp_path: Path) -> Any:
    """`command("run", seed=0, ...overrides)`: the exit code; results in `tmp_path/run`."""

    def run(name: str, *overrides: str, seed: int = 0) -> int:
        folder = tmp_path / f"model{seed}"
        if not folder.exists():
            tiny_model(seed=seed).save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
        return script(
            "eval.py",
            "eval",
            [
                "--config-name=eval.yaml",
                "experiment=eval/tofu/default",
                "forget_split=forget10",
                "holdout_split=holdout10",
                f"task_name={name}",
                f"paths.output_dir={tmp_path / name}",
                f"paths.data_root={data_root}",
                f"model.model_args.pretrained_model_name_or_path={folder}",
                "model.model_args.torch_dtype=float32",
                f"model.tokenizer_args.pretrained_model_name_or_path={folder}",
                "eval.tofu.generation.max_new_tokens=4",
                *overrides,
            ],
        )

    return run


def test_the_next_command_reads_the_retain_models_file(
    command: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command evaluates what its validation bound; nothing is bound a second time.
    monkeypatch.setattr("expunge.evaluation.plan.bound_alone", None)
    assert command("retain", seed=1) == 0
    logs = tmp_path / "retain" / "TOFU_EVAL.json"
    assert json.loads((tmp_path / "retain" / "TOFU_SUMMARY.json").read_text())["forget_quality"] is None
    assert command("run", f"retain_logs_path={logs}") == 0
    summary = json.loads((tmp_path / "run" / "TOFU_SUMMARY.json").read_text())
    assert 0 < summary["forget_quality"] <= 1
    assert summary["privleak"] is not None
    capsys.readouterr()
    # Logs of another split, and a path without a file: a message, exit code 2, nothing written.
    other = ("forget_split=forget05", "holdout_split=holdout05", f"retain_logs_path={logs}")
    assert command("other", *other) == 2
    assert "forget10" in capsys.readouterr().err
    assert command("none", f"retain_logs_path={tmp_path / 'no.json'}") == 2
    assert "no.json" in capsys.readouterr().err
    assert not list(tmp_path.glob("other/TOFU_*"))
    assert not list(tmp_path.glob("none/TOFU_*"))
