"""Other answers to the same questions: a key of the row, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.core.errors import Fault, UserError
from expunge.data.formats import read_fields
from expunge.data.rows import Row, RowSet
from expunge.lm.runtime import generator


def from_key(rows: RowSet, key: str, seed: int) -> list[str]:
    """The alternate answer that each row carries itself; one is drawn per row where it carries a list."""
    return [one_text(row.fields[key], seed, row, key) for row in rows]


def from_file(path: Path, rows: RowSet, key: str, question_key: str, seed: int) -> list[str]:
    """The alternate answers of a file, matched to the rows by `id`, else by question.

    Args:
        path: JSON, JSON Lines, CSV or parquet; each entry has `key` and either `id` (a row id) or the
            question. Several entries for one row are several candidates, of which one is drawn by (seed, row
            id).
        rows: the rows; the file must know exactly these.
        key: where an entry holds its alternate answer (text or list of texts).
        question_key: where entry and row hold the question.
        seed: of the run.

    Raises:
        UserError: no such file, an entry without its keys, or a file made for other rows.
    """
    if not path.is_file():
        raise UserError(
            f"no such file of alternates: {path.absolute()}",
            "generate the alternates first, or correct alternate_path",
        )
    candidates: dict[str, list[str]] = {}
    by_id = None
    for number, entry in enumerate(read_fields(path)):
        by_id = "id" in entry if by_id is None else by_id
        match = "id" if by_id else question_key
        if entry.get(match) is None or entry.get(key) is None:
            raise UserError(
                f"{path}: entry {number} (counting from 0) lacks {match!r} or {key!r}; it has: {', '.join(sorted(entry))}"
            )
        found = entry[key]
        candidates.setdefault(str(entry[match]), []).extend(found if isinstance(found, list) else [found])
    names = [row.id if by_id else str(row.fields[question_key]) for row in rows]
    missing, foreign = (
        [name for name in names if name not in candidates],
        sorted(set(candidates) - set(names)),
    )
    if missing or foreign:
        told = (
            [f"{len(missing)} rows of {rows.name!r} have no alternate (first: {missing[0]!r})"]
            if missing
            else []
        )
        told += [f"{len(foreign)} entries are about other rows (first: {foreign[0]!r})"] if foreign else []
        raise UserError(
            f"{path} was made for another row set: " + "; ".join(told),
            "expunge alternates writes them for the rows at hand",
        )
    return [one_text(candidates[name], seed, row, key) for name, row in zip(names, rows, strict=True)]


def one_text(value: Any, seed: int, row: Row, key: str) -> str:
    """A text as it is, or one drawn from a list of texts."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError.of(
            [
                Fault(
                    f"row {row.index} ({row.id}): {key!r} is neither a text nor a list of texts",
                    "mend the row",
                )
            ]
        )
    return str(texts[0]) if len(texts) == 1 else drawn(texts, seed, row)


def drawn(texts: Sequence[str], seed: int, row: Row) -> str:
    """One of the texts, by a generator of (seed, row id)."""
    return texts[int(torch.randint(len(texts), (), generator=generator(seed, "alternate", row.id)))]
