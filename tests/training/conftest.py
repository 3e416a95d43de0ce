"""A small unlearning task: random rows of different lengths, new pairs each epoch, a tiny model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, pairs_of
from expunge.data.rows import Row, RowSet
from expunge.lm import runtime

torch.set_num_threads(1)
PAD = 4
SMALL = {"num_hidden_layers": 1}


def rows(count: int, name: str) -> list[Encoded]:
    draw = runtime.generator("rows", name)
    found = []
    for row in range(count):
        prompt, answer = (
            int(torch.randint(2, 5, (), generator=draw)),
            int(torch.randint(1, 9, (), generator=draw)),
        )
        ids = torch.randint(5, 60, (prompt + answer,), generator=draw).tolist()
        found.append(
            Encoded(tuple(ids), (False,) * prompt + (True,) * answer, None, prompt, f"{name}{row}", row)
        )
    return found


def dataset(count: int, name: str) -> Dataset:
    encoded = rows(count, name)
    return Dataset(
        name, RowSet.of(name, [Row(row.row_id, row.row, {}) for row in encoded], "test"), encoded, name
    )


def make_pairs(count: int = 13, seed: int = 0) -> PairedDataset:
    """13 forget rows, each with one of 17 retain rows; another retain row in each epoch."""
    forget, retain = dataset(count, "forget"), dataset(17, "retain")
    return PairedDataset(forget, retain, pairs_of(forget, retain, seed, n_epochs=3))


@pytest.fixture(scope="session", autouse=True)
def _quick_collections() -> None:
    """Each run collects garbage once; imported objects are frozen, so that this is quick."""
    import transformers.trainer  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pairs() -> Callable[..., PairedDataset]:
    return make_pairs


@pytest.fixture(scope="session")
def retain_only() -> PairedDataset:
    """A finetuning set: the training rows are the retain side."""
    return PairedDataset(retain=dataset(13, "retain"))


@pytest.fixture(scope="session")
def make_collate() -> PairCollator:
    return PairCollator(PAD)


@pytest.fixture(scope="session")
def objective() -> Callable[..., Any]:
    """NPO (sequence, reads the reference) with NLL on the retain side (token), or any other objective."""
    from expunge.methods.objective import build_objective

    def build(handler: str = "expunge.methods.npo:npo", **method_args: Any) -> Any:
        return build_objective(handler, {"retain": "nll", "gamma": 0.7, "alpha": 1.3, **method_args})

    return build


@pytest.fixture
def trainer(tiny_model: Any, objective: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Builds a trainer: `trainer(folder=..., task=..., model=..., pairs=..., **trainer.args)`."""
    from expunge.models.reference import FrozenCopy
    from expunge.training.arguments import training_arguments
    from expunge.training.loop import Training

    def build(
        folder: Path | None = None,
        task: Any = None,
        model: Any = None,
        pairs: Any = None,
        extra: Any = None,
        **args: Any,
    ) -> Any:
        settings = {
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "linear", "warmup_epochs": 0.5,
            "disable_tqdm": True,
        }  # fmt: skip
        pairs = pairs or make_pairs()
        arguments = training_arguments({**settings, **args}, folder or tmp_path / "run", len(pairs), seed=3)
        model = tiny_model(seed=1, attention_dropout=0.1, **SMALL) if model is None else model
        given = {"reference": FrozenCopy(tiny_model(seed=1, **SMALL)), **(extra or {})}
        return Training(
            model, arguments, objective=task or objective(), dataset=pairs, collate=PairCollator(PAD), **given
        )

    return build
