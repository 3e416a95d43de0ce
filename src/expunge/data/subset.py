"""A subset of the rows of a data set, chosen by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from expunge.core.fingerprint import fingerprint
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded


def subset(dataset: Dataset, positions: Sequence[int]) -> Dataset:
    """The rows at these positions, in this order, with alternates; ids are kept, indices restart at 0."""
    rows = dataset.rows.having([dataset.rows[position] for position in positions])

    def taken(examples: Sequence[Encoded]) -> list[Encoded]:
        return [replace(examples[position], row=row) for row, position in enumerate(positions)]

    return Dataset(
        dataset.name,
        rows,
        taken(dataset.encoded),
        fingerprint([dataset.fingerprint, list(positions)]),
        None if dataset.alternates is None else taken(dataset.alternates),
    )
