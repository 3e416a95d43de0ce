from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli.soul import script

RUN = (
    "--overall.model_name expunge/mini --unlearn.task_name tofu --unlearn.unlearn_method {method} --unlearn.max_steps 2 "
    "--dataset.forget_dataset_name Tofu_forget10 --dataset.retain_dataset_name Tofu_retain90 --dataset.batch_size 2 "
    "--logger.name {name} eval=null model.model_args.torch_dtype=float32"
)


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]


def test_a_composite_trains_by_command_line(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*RUN.format(method="GA+FT", name="A").split(), "--unlearn.GA+FT.gamma", "0.5", "--dataset.forget_ratio", "4"]
    assert script("unlearn_model", argv) == 0
    steps = [record for record in records(data_root.parent / "files" / "logs" / "A") if "retain_nll" in record]
    assert len(steps) == 2
    assert all(abs(step["loss"] - (step["grad_diff"] + 0.5 * step["retain_nll"])) < 1e-4 for step in steps)  # type: ignore[operator]


def test_random_labels_with_the_rest_of_the_forget_set(data_root: Path) -> None:
    argv = RUN.format(method="RL", name="B").replace("--dataset.retain_dataset_name Tofu_retain90", "--dataset.self_retain 1").split()
    assert script("unlearn_model", [*argv, "--dataset.forget_ratio", "0.5"]) == 0
    folder = data_root.parent / "files" / "logs" / "B"
    assert [record["rl"] for record in records(folder) if "rl" in record]
    config = json.loads((folder / "run_config.json").read_text())["config"]
    assert config["data"]["retain"]["TOFU_QA_retain"]["args"]["select"] == {"ratio": 0.5, "seed": 0, "complement": True}
    assert config["data"]["forget"]["TOFU_QA_forget"]["args"]["answers"] == config["data"]["retain"]


def test_more_rows_than_there_are_is_an_error_before_a_model_is_loaded(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*RUN.format(method="GA", name="C").split(), "--dataset.forget_ratio", "200"]
    assert script("unlearn_model", argv) == 2
    assert "asks for 200 rows" in capsys.readouterr().err


@pytest.mark.slow
def test_finetuning_on_two_ranks_has_the_loss_curve_of_one(data_root: Path) -> None:
    path = str(Path(__file__).resolve().parents[2] / "exec" / "Fine_tune_tofu.py")
    flags = ["--model_name", "expunge/mini", "--subset", "full", "--epochs", "2", "--batch_size", "2", "--lr", "1e-3", "--lora_r", "0"]
    flags += ["trainer.args.logging_steps=1", "model.model_args.torch_dtype=float32"]
    subprocess.run([sys.executable, path, *flags, "--gradient_accumulation_steps", "4", "--save_dir", "one"], check=True, timeout=240)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*torchrun, path, *flags, "--gradient_accumulation_steps", "2", "--save_dir", "two"], check=True, timeout=240)
    one, two = ([record["loss"] for record in records(data_root.parent / name) if "finetune" in record] for name in ("one", "two"))
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-5)
