"""Command lines of the SOUL family, and what they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.soul.methods import METHODS
from expunge.soul.translate import SoulCommand, translate

ROOT = Path(__file__).resolve().parents[2]
FULL = (
    "--overall.model_name expunge/mini --overall.cache_dir .cache --overall.seed 0 --overall.logger json "
    "--unlearn.task_name tofu "
    "--unlearn.unlearn_method {method} --unlearn.num_epochs 1 --unlearn.lr 1e-4 --unlearn.weight_decay 0.1 "
    "--unlearn.gradient_accumulation_steps 1 --unlearn.sophia {sophia} --unlearn.sophia_params.betas_low 0.9 "
    "--unlearn.sophia_params.betas_high 0.95 --unlearn.sophia_params.rho 0.03 --unlearn.use_lora 0 "
    "--unlearn.compute_difficulty_only 0 "
    "--unlearn.enable_difficulty_sampling 0 --unlearn.difficulty_order asc {gamma} "
    "--dataset.forget_dataset_name Tofu_forget10 "
    "--dataset.retain_dataset_name Tofu_retain90 --dataset.dataset_seed 7 --dataset.forget_ratio 4 "
    "--dataset.self_retain 0 "
    "--dataset.batch_size 4 --logger.name N --logger.json.root files/logs"
)


def line(method: str, sophia: int = 0) -> list[str]:
    gamma = f"--unlearn.{method}.gamma 1.5" if METHODS[method].required else ""
    return FULL.format(method=method, gamma=gamma, sophia=sophia).split()


def short(method: str = "GA", **more: str) -> list[str]:
    flags = {
        "model_name": "M",
        "task_name": "tofu",
        "unlearn_method": method,
        "forget_dataset_name": "Tofu_forget10",
        **more,
    }
    return [word for name, value in flags.items() if value for word in (f"--{name}", value)]


def loaded(found: SoulCommand) -> Config:
    return load_config(found.config_name, found.overrides)


def faults(argv: list[str], name: str = "unlearn_model") -> list[str]:
    with pytest.raises(UserError) as caught:
        translate(argv, name)
    return [str(fault) for fault in caught.value.faults]
