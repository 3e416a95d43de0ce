"""A base and a trained adapter of it, for the tests of adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import LORA, args, logits, make_side, train

from expunge.models.adapters import save_model
from expunge.models.load import load_model


@pytest.fixture(scope="module")
def side() -> Any:
    return make_side()


@pytest.fixture(scope="module")
def once(
    tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, torch.Tensor]:
    """A base and a trained adapter of it, created once for all tests, and their logits."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_model(seed=1).save_pretrained(folder / "base")
    model = load_model(args(folder / "base"), LORA, for_training=True).model
    train(model, make_side())
    save_model(model, folder / "trained")
    return folder, logits(model, make_side())


@pytest.fixture
def base(once: Any, tmp_path: Path) -> Path:
    shutil.copytree(once[0] / "base", tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def trained(once: Any, base: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of a trained adapter of `base`, and its logits before saving."""
    folder = tmp_path / "trained"
    shutil.copytree(once[0] / "trained", folder)
    for name in ("adapter_config.json", "base_model.json"):
        (folder / name).write_text((folder / name).read_text().replace(str(once[0] / "base"), str(base)))
    return folder, once[1]


@pytest.fixture
def mini(tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small, fast model instead of the embedded model."""
    tiny_model(seed=9).save_pretrained(tmp_path / "mini")
    monkeypatch.setattr("expunge.data.mini.model_folder", lambda: tmp_path / "mini")
