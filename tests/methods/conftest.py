"""A small unlearning task, and a function that trains a method on it for some steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from expunge.data.collate import PairCollator
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, pairs_of
from expunge.data.rows import Row, RowSet
from expunge.lm import runtime
from expunge.lm.labels import Batch

torch.set_num_threads(1)
PAD = 4
SIDES = ("forget", "retain", "alternate")


def rows(count: int, name: str) -> list[Encoded]:
    """Rows of random tokens: prompts of 2 to 4, answers of 1 to 6."""
    draw = runtime.generator("methods", name)
    found = []
    for row in range(count):
        prompt, answer = int(torch.randint(2, 5, (), generator=draw)), int(torch.randint(1, 7, (), generator=draw))
        ids = torch.randint(5, 60, (prompt + answer,), generator=draw).tolist()
        found.append(Encoded(tuple(ids), (False,) * prompt + (True,) * answer, None, prompt, f"{name}{row}", row))
    return found


def dataset(count: int, name: str, alternates: bool = False) -> Dataset:
    encoded = rows(count, name)
    row_set = RowSet.of(name, [Row(item.row_id, item.row, {}) for item in encoded], "test")
    return Dataset(name, row_set, encoded, name, rows(count, "alternate") if alternates else None)


def task(sides: tuple[str, ...] = SIDES, count: int = 8) -> PairedDataset:
    forget, retain = dataset(count, "forget", alternates=True), dataset(count + 3, "retain")
    return PairedDataset(forget, retain, pairs_of(forget, retain, 0, n_epochs=6), sides=sides)


class Ran(NamedTuple):
    """A model that was trained, before and after, the trainer, and a batch of all rows."""

    model: Any
    before: Any
    trainer: Any
    batch: Batch


@pytest.fixture
def run(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Ran]:
    """`run(handler, method_args, steps=5, folder=..., model=..., switches=..., extra=..., **trainer.args)`: train on the task."""
    from expunge.methods.objective import build_objective
    from expunge.models.reference import FrozenCopy, plan_reference
    from expunge.training.arguments import training_arguments
    from expunge.training.trainer import UnlearnTrainer

    def go(
        handler: str,
        method_args: dict[str, Any] | None = None,
        *,
        steps: int = 5,
        folder: str = "run",
        model: Any = None,
        switches: dict[str, dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
        resume: Any = None,
        **args: Any,
    ) -> Ran:
        objective = build_objective(handler, method_args or {}, lambda name: (switches or {}).get(name, {}))
        data = task(tuple(dict.fromkeys((*objective.sides, "forget"))))
        model = tiny_model(seed=1) if model is None else model
        objective.prepare(model, 0, tiny_tokenizer)
        frozen = FrozenCopy(model, hidden=objective.hidden)
        settings = {
            "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": steps, "learning_rate": 1e-3,
            "lr_scheduler_type": "constant", "weight_decay": 0.0, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        }  # fmt: skip
        arguments = training_arguments({**settings, **args}, tmp_path / folder, len(data), seed=3)
        trainer = UnlearnTrainer(
            model,
            arguments,
            objective=objective,
            dataset=data,
            collate=PairCollator(PAD),
            reference=None if plan_reference(objective.needs) == "none" else frozen,
            **(extra or {}),
        )
        trainer.train(resume_from_checkpoint=resume)
        everything = task()
        return Ran(model.eval(), frozen.model, trainer, PairCollator(PAD)([everything[row] for row in range(len(everything))]))

    return go
