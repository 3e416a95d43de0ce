"""The command lines of the SOUL family, unchanged, in separate processes with the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recorded import read_records

ROOT = Path(__file__).resolve().parents[2]
LONG = (
    "--overall.model_name expunge/mini --overall.cache_dir .cache --overall.seed 0 --overall.logger json "
    "--unlearn.task_name tofu "
    "--unlearn.unlearn_method GA+FT --unlearn.num_epochs 1 --unlearn.lr 1e-4 --unlearn.weight_decay 0.1 "
    "--unlearn.gradient_accumulation_steps 1 --unlearn.sophia 1 --unlearn.sophia_params.betas_low 0.9 "
    "--unlearn.sophia_params.betas_high 0.95 --unlearn.sophia_params.rho 0.03 --unlearn.use_lora 0 "
    "--unlearn.compute_difficulty_only 0 --unlearn.difficulty_score_path scores.json "
    "--unlearn.enable_difficulty_sampling 0 "
    "--unlearn.difficulty_order asc --unlearn.GA+FT.gamma 1.0 --dataset.forget_dataset_name Tofu_forget10 "
    "--dataset.retain_dataset_name Tofu_retain90 --dataset.dataset_seed 0 --dataset.forget_ratio 4 "
    "--dataset.self_retain 0 "
    "--dataset.batch_size 4 --logger.name N --logger.json.root files/logs"
)
UNDOTTED = (
    "--use_lora --sophia --model_name expunge/mini --cache_dir .cache --seed 0 --logger json --task_name "
    "tofu --unlearn_method GA+FT "
    "--num_epochs 1 --lr 1e-4 --weight_decay 0.1 --gradient_accumulation_steps 1 --gamma 1.0 "
    "--forget_dataset_name Tofu_forget10 "
    "--retain_dataset_name Tofu_retain90 --dataset_seed 0 --forget_ratio 4 --batch_size 4 --run_name N "
    "--log_root files/logs"
)
CONFIG_FILE = "--config_file configs/soul/TOFU/SO_GradDiff.json --unlearn.lr 5e-6"
# To save time: answers of two tokens, and float32, which is fast on a CPU.
QUICK = (
    "eval.tofu.generation.max_new_tokens=2 eval.tofu.bootstrap={resamples:10,seed:0} "
    "model.model_args.torch_dtype=float32"
)


@pytest.fixture
def here(data_root: Path) -> Path:
    """A working directory with the repository's folders, so that the commands need no change."""
    for name in ("exec", "src", "configs"):
        (data_root.parent / name).symlink_to(ROOT / name)
    return data_root.parent


def run(here: Path, *command: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=here,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["config"]


def terms_of(folder: Path) -> list[tuple[float, float]]:
    return [
        (record["grad_diff"], record["retain_nll"]) for record in read_records(folder) if "loss" in record
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_long_command_trains_and_then_evaluates_what_it_trained(here: Path) -> None:
    run(here, "exec/unlearn_model.py", *LONG.split(), *QUICK.split())
    folder = here / "files" / "logs" / "N"
    assert {"config.json", "log.json", "tofu.json", "run.json", "checkpoints"} <= names(folder)
    assert len(terms_of(folder)) == 1
    assert config_of(folder)["trainer"]["optimizer"]["handler"] == "expunge.optim.sophia:sophia"
    reported = run(
        here,
        "exec/unlearn_model.py",
        *LONG.split(),
        "--unlearn.resume_path",
        "files/logs/N/checkpoints",
        *QUICK.split(),
    )
    assert "its evaluation is written to files/logs/N_eval" in reported
    metrics = [
        json.loads((here / "files" / "logs" / name / "run.json").read_text())["metrics"]
        for name in ("N", "N_eval")
    ]
    assert metrics[0] == metrics[1]
    assert metrics[0]["forget_Q_A_Prob"] > 0


@pytest.mark.slow
def test_undotted_and_valueless_flags_with_the_script_in_src(here: Path) -> None:
    run(here, "src/exec/unlearn_model.py", *UNDOTTED.split(), *QUICK.split())
    folder = here / "files" / "logs" / "N"
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names(
        folder / "checkpoints"
    )
    assert "model.safetensors" not in names(folder / "checkpoints")
    assert config_of(folder)["model"]["adapter"]["r"] == 8
    assert len(terms_of(folder)) == 1


@pytest.mark.slow
def test_a_flag_wins_over_the_file_of_flags(here: Path) -> None:
    run(
        here,
        "exec/unlearn_model.py",
        *CONFIG_FILE.split(),
        "--overall.model_name",
        "expunge/mini",
        *QUICK.split(),
    )
    folder = here / "files" / "logs" / "SO_GradDiff"
    config = config_of(folder)
    assert config["trainer"]["args"]["learning_rate"] == 5e-6
    assert (config["trainer"]["method_args"]["alpha"], config["trainer"]["optimizer"]["rho"]) == (2.0, 0.04)
    # Six rows, one per micro-batch and four per step: two steps in each of five epochs. A twentieth of the
    # run is less than one step, so every step is logged.
    assert len(terms_of(folder)) == 10
    assert (folder / "tofu.json").is_file()
