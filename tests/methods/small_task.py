"""An unlearning task with rows of random tokens, drawn from a fixed seed."""

from __future__ import annotations

import torch

from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, pairs_of
from expunge.data.rows import Row, RowSet
from expunge.lm import runtime

torch.set_num_threads(1)
PAD = 4
SIDES = ("forget", "retain", "alternate")


def rows(count: int, name: str) -> list[Encoded]:
    """Rows of random tokens: prompts of 2 to 4, answers of 1 to 6."""
    draw = runtime.generator("methods", name)
    found = []
    for row in range(count):
        prompt, answer = (
            int(torch.randint(2, 5, (), generator=draw)),
            int(torch.randint(1, 7, (), generator=draw)),
        )
        ids = torch.randint(5, 60, (prompt + answer,), generator=draw).tolist()
        found.append(
            Encoded(tuple(ids), (False,) * prompt + (True,) * answer, None, prompt, f"{name}{row}", row)
        )
    return found


def dataset(count: int, name: str, alternates: bool = False) -> Dataset:
    encoded = rows(count, name)
    row_set = RowSet.of(name, [Row(item.row_id, item.row, {}) for item in encoded], "test")
    return Dataset(name, row_set, encoded, name, rows(count, "alternate") if alternates else None)


def task(sides: tuple[str, ...] = SIDES, count: int = 8) -> PairedDataset:
    forget, retain = dataset(count, "forget", alternates=True), dataset(count + 3, "retain")
    return PairedDataset(forget, retain, pairs_of(forget, retain, 0, n_epochs=6), sides=sides)
