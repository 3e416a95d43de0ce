"""Other answers to the same questions, read from a key of the row or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.core.errors import UserError
from expunge.data.formats import read_fields
from expunge.data.rows import Row, RowSet
from expunge.lm.runtime import generator


def from_file(path: Path, rows: RowSet, key: str, question_key: str, seed: int) -> list[str]:
    """The alternate answers of a file, matched to the rows by `id`, else by question.

    The file is JSON, JSON Lines, CSV or parquet. It has entries for each row and no others, with `key` (a
    text or a list of texts) and either `id` (a row id) or the question. If a row has several, one is drawn
    by (seed, row id).

    Raises:
        UserError: the file does not exist, an entry lacks a key, or the file was made for other rows.
    """
    if not path.is_file():
        raise UserError(
            f"the file of alternate answers does not exist: {path.absolute()}",
            "generate the alternates first (expunge alternates), or correct alternate_path",
        )
    candidates: dict[str, list[str]] = {}
    by_id = None
    for number, entry in enumerate(read_fields(path)):
        by_id = "id" in entry if by_id is None else by_id
        match = "id" if by_id else question_key
        if entry.get(match) is None or entry.get(key) is None:
            raise UserError(
                f"{path}: entry {number} (counting from 0) lacks {match!r} or {key!r}; "
                f"it has: {', '.join(sorted(entry))}"
            )
        found = entry[key]
        candidates.setdefault(str(entry[match]), []).extend(found if isinstance(found, list) else [found])
    names = [row.id if by_id else str(row.fields[question_key]) for row in rows]
    missing = [name for name in names if name not in candidates]
    foreign = sorted(set(candidates) - set(names))
    differences = []
    if missing:
        differences.append(f"{len(missing)} rows of {rows.name!r} have no alternate (first: {missing[0]!r})")
    if foreign:
        differences.append(f"{len(foreign)} entries belong to other rows (first: {foreign[0]!r})")
    if differences:
        raise UserError(
            f"{path} was made for other rows: " + "; ".join(differences),
            "generate the alternates for these rows (expunge alternates)",
        )
    return [one_text(candidates[name], seed, row, key) for name, row in zip(names, rows, strict=True)]


def one_text(value: Any, seed: int, row: Row, key: str) -> str:
    """The text itself, or one text drawn from a list."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"row {row.index} ({row.id}): {key!r} is neither a text nor a list of texts", "correct the row"
        )
    return str(texts[0]) if len(texts) == 1 else drawn(texts, seed, row)


def drawn(texts: Sequence[str], seed: int, row: Row) -> str:
    """One of the texts, drawn by a generator seeded with (seed, row id)."""
    return texts[int(torch.randint(len(texts), (), generator=generator(seed, "alternate", row.id)))]
