"""Fixtures: a folder with a user's own choices, a small model folder, a data root."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

ROWS = {
    "full": 10,
    "forget10": 5,
    "retain90": 9,
    "holdout10": 2,
    "forget10_perturbed": 5,
    "retain_perturbed": 4,
    "real_authors_perturbed": 2,
    "world_facts_perturbed": 2,
}
METHOD = '''"""A user's own method."""

import a_package_that_is_nowhere  # an import of this module would fail

from expunge.methods.base import loss

HALF = 0.5


@loss(kind="sequence", gamma=2.0, retain="kl", paper="mine")
def mine(forget_seq_logp_B, ref_forget_seq_logp_B, *, beta=0.25, scale=HALF, power):
    """Mine: forgets twice as fast.

    More words.
    """
    return forget_seq_logp_B


@loss(kind="token")
def odd(forget_logp_BN, forget_speed_B):
    """Reads a quantity that does not exist."""
    return forget_logp_BN


class Thing:
    """A class."""

    def __init__(self, first, *, second=2):
        self.first = first
'''


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a method with its own lr, a generic experiment, an experiment that names the method.

    The method's module is beside the folder.
    """
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    root = tmp_path / "mine" / "configs"
    files = {
        "trainer/Mine.yaml": (
            "defaults:\n  - finetune\n\nhandler: own_method_for_tests:mine\n"
            "args:\n  learning_rate: 1e-4\nmethod_args:\n  power: 3\n"
        ),
        "flavour/sour.yaml": "# @package trainer.method_args\npower: 7\n",
        "experiment/unlearn/own/generic.yaml": "# @package _global_\ndefaults:\n  - override /budget: tofu\n",
        "experiment/unlearn/own/named.yaml": (
            "# @package _global_\ndefaults:\n  - override /trainer: Mine\n\n"
            "trainer:\n  args:\n    learning_rate: 3e-4\n"
        ),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root.parent / "own_method_for_tests.py").write_text(METHOD)
    return root


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[[str], Path]:
    """A factory of folders that look like a model of 4 x 6 + 10 = 34 parameters, with a tokenizer file."""

    def build(name: str = "model") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        entries = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]},
            "b": {"dtype": "F32", "shape": [10], "data_offsets": [96, 136]},
        }
        header = json.dumps(entries).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(136))
        return folder

    return build


@pytest.fixture
def tofu_root(tmp_path: Path) -> Path:
    """A data root with TOFU's names, each with a few rows."""
    folder = tmp_path / "data" / "tofu"
    folder.mkdir(parents=True)
    for name, count in ROWS.items():
        lines = [json.dumps({"question": f"{name} {index}?", "answer": "yes"}) for index in range(count)]
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n")
    return folder.parent
