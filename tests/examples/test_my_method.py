"""The worked example of a user's own method: found with `--config-dir`, listed, checked, and run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.main import main
from expunge.config.validate import load_config
from expunge.core.errors import UserError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_method"
CONFIGS = str(EXAMPLE / "configs")


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_method", None)
    yield
    sys.modules.pop("my_method", None)


def test_it_is_listed_and_shown(capsys: pytest.CaptureFixture[str]):
    assert main(["ls", "methods", "--config-dir", CONFIGS]) == 0
    assert "FlooredAscent" in capsys.readouterr().out
    assert main(["show", "FlooredAscent", "--config-dir", CONFIGS]) == 0
    message = capsys.readouterr().out
    assert "reads: forget_logp_BN" in message
    assert "floor=5.0" in message


def test_a_wrong_name_is_reported_before_anything_runs(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    common = [
        "trainer=FlooredAscent",
        "experiment=unlearn/mini/default",
        "task_name=x",
        f"model.model_args.pretrained_model_name_or_path={folder}",
    ]
    load_config("unlearn.yaml", common, [CONFIGS])
    with pytest.raises(UserError, match="did you mean 'floor'"):
        load_config("unlearn.yaml", [*common, "trainer.method_args.flor=3"], [CONFIGS])


def test_it_trains(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any):
    folder, out = tmp_path / "model", tmp_path / "run"
    tiny_model(max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    overrides = [
        "trainer=FlooredAscent",
        "experiment=unlearn/mini/default",
        "task_name=floored",
        f"paths.output_dir={out}",
        "eval=null",
        f"model.model_args.pretrained_model_name_or_path={folder}",
        f"model.tokenizer_args.pretrained_model_name_or_path={folder}",
        "trainer.args.max_steps=3",
        "trainer.args.logging_steps=1",
        "trainer.args.report_to=none",
        "trainer.args.use_cpu=true",
        "model.model_args.torch_dtype=float32",
    ]
    assert main(["unlearn", "--config-dir", CONFIGS, *overrides]) == 0
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    values = [record["floored_ascent"] for record in records if "floored_ascent" in record]
    assert len(values) == 3
    assert all(-6.0 <= value < 0 for value in values)
    assert all("retain_nll" in record for record in records if "floored_ascent" in record)
