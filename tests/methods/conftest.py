"""A small unlearning task, and a function that trains a method on it for some steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_task import PAD, SIDES, task

from expunge.data.collate import PairCollator
from expunge.data.pairs import PairedDataset
from expunge.lm.labels import Batch


class Ran(NamedTuple):
    """A trained model, the model before training, the trainer, and a batch of all rows."""

    model: Any
    before: Any
    trainer: Any
    batch: Batch


@pytest.fixture
def run(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Ran]:
    """A function that trains a method on the task: `run(handler, method_args, steps=5, **trainer.args)`.

    It also takes folder, model, data, switches, extra. `data(sides)` gives other rows than those of
    `small_task`, padded with the same id.
    """
    from expunge.methods.objective import build_objective
    from expunge.models.reference import FrozenCopy, plan_reference
    from expunge.training.arguments import training_arguments
    from expunge.training.loop import Training

    def go(
        handler: str,
        method_args: dict[str, Any] | None = None,
        *,
        steps: int = 5,
        folder: str = "run",
        model: Any = None,
        data: Callable[[tuple[str, ...]], PairedDataset] = task,
        switches: dict[str, dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
        tokenizer: Any = None,
        resume: Any = None,
        **args: Any,
    ) -> Ran:
        objective = build_objective(handler, method_args or {}, lambda name: (switches or {}).get(name, {}))
        rows = data(tuple(dict.fromkeys((*objective.sides, "forget"))))
        model = tiny_model(seed=1) if model is None else model
        objective.prepare(model, 0, tokenizer or tiny_tokenizer)
        frozen = FrozenCopy(model, hidden=objective.hidden)
        settings = {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_steps": steps,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        arguments = training_arguments({**settings, **args}, tmp_path / folder, len(rows), seed=3)
        trainer = Training(
            model,
            arguments,
            objective=objective,
            dataset=rows,
            collate=PairCollator(PAD),
            reference=None if plan_reference(objective.needs) == "none" else frozen,
            **(extra or {}),
        )
        trainer.run(resume)
        everything = data(SIDES)
        return Ran(
            model.eval(),
            frozen.model,
            trainer,
            PairCollator(PAD)([everything[row] for row in range(len(everything))]),
        )

    return go
