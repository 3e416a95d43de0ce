"""Rows with stable ids, from a local file, the embedded benchmark or the hub."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.core.errors import Fault, UserError
from expunge.core.fingerprint import LENGTH, fingerprint
from expunge.data.sources import Source, read_source

SHOWN = 5
"""Number of faulty rows that an error names; it only counts the others."""


@dataclass(frozen=True)
class Row:
    """One record.

    Attributes:
        id: hash of the content; `#k` is appended for the k-th repeat in the set (k from 1).
        index: position in the set, from 0.
        fields: the record's keys and values as read.
    """

    id: str
    index: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class RowSet:
    """Rows of one split, in the order of their source.

    Attributes:
        name: short name, such as `forget10`.
        rows: the rows; `rows[i].index == i`.
        fingerprint: hash of the ids and contents, in order; it does not depend on where the rows come from.
        source: where the rows come from, as text for messages.
        file: the local file, or None.
    """

    name: str
    rows: tuple[Row, ...]
    fingerprint: str
    source: str
    file: Path | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[Row], source: str, file: Path | None = None) -> RowSet:
        """A set of rows with its fingerprint; positions are numbered again from 0."""
        placed = tuple(Row(row.id, index, row.fields) for index, row in enumerate(rows))
        return cls(name, placed, fingerprint([[row.id, row.fields] for row in placed]), source, file)

    def having(self, rows: Sequence[Row]) -> RowSet:
        """A set of other rows with the same name and source."""
        return RowSet.of(self.name, rows, self.source, self.file)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in order."""
        return tuple(row.id for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def load_rows(
    hf_args: Mapping[str, Any], data_root: Path | None = None, keys: Sequence[str] | None = None
) -> RowSet:
    """Load the rows of a data set; local files are searched first, the hub last.

    1. `path` is a local file (JSON, JSON Lines, CSV, parquet or text, recognised by content), or a builder
       (`json`, `csv`, `text`, `parquet`) with `data_files`.
    2. `path: org/NAME` with `name` is `DATA_ROOT/name-in-lower-case/NAME.{json,jsonl,csv,parquet,txt}`:
       `locuslab/TOFU` with `forget10` finds `tofu/forget10.json`. `path: expunge/mini` is the benchmark that
       the package generates.
    3. The hub, through the package `datasets`.

    Args:
        hf_args: `path`, and optionally `name`, `split` (with a slice, such as `train[:10]`), `revision`,
            `data_files`, `sample_by`.
        data_root: the folder of local data sets (`paths.data_root`), or None.
        keys: keys that each row must have. The id uses the first two as (question, answer) if a row has
            neither `question` and `answer` nor `text`.

    Returns:
        The rows. Ids are assigned before slicing, so a row keeps its id in every slice.

    Raises:
        UserError: the data set is not found or empty, or rows lack a key.
    """
    source = Source.of(hf_args)
    fields, origin, file = read_source(source, data_root)
    if not fields:
        raise UserError(
            f"the split {source.label!r} is empty: no row in {origin}",
            "give a file with at least one row, or choose another split",
        )
    if keys:
        _check_keys(fields, keys, origin)
    rows = [
        Row(row_id, index, row)
        for index, (row_id, row) in enumerate(zip(row_ids(fields, keys or ()), fields, strict=True))
    ]
    kept = [rows[index] for index in source.cut(len(rows))]
    if not kept:
        raise UserError(
            f"the slice {hf_args.get('split')!r} of {source.label!r} keeps none of its {len(rows)} rows",
            "choose a larger slice",
        )
    return RowSet.of(source.label, kept, origin, file)


def row_ids(fields: Iterable[Mapping[str, Any]], keys: Sequence[str] = ()) -> list[str]:
    """Ids of records; the ids of equal records differ only in `#k`.

    Args:
        fields: the records.
        keys: (question, answer) keys for records that have neither `question` and `answer` nor `text`.

    Returns:
        Hexadecimal ids of 16 digits, with `#k` for the k-th repeat.
    """
    return number_repeats(_content_id(row, keys) for row in fields)


def number_repeats(ids: Iterable[str]) -> list[str]:
    """Append `#k` to the k-th repeat of an id, k from 1; the first occurrence is unchanged."""
    seen: dict[str, int] = {}
    numbered = []
    for row_id in map(base_id, ids):
        repeat = seen[row_id] = seen.get(row_id, -1) + 1
        numbered.append(f"{row_id}#{repeat}" if repeat else row_id)
    return numbered


def base_id(row_id: str) -> str:
    """The id without `#k`: the hash of the content, equal for all repeats."""
    return row_id.partition("#")[0]


def _content_id(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Hash of (question, answer), else of `text`, else of the values of `keys`, else of the whole record."""
    # `question` and `answer` come before `keys`: a view with a paraphrased question keeps the row id.
    chosen: Sequence[str]
    if "question" in row and "answer" in row:
        chosen = ("question", "answer")
    elif "text" in row:
        chosen = ("text",)
    elif len(keys) >= 2 and all(key in row for key in keys[:2]):
        chosen = keys[:2]
    else:
        chosen = sorted(row)
    canonical = json.dumps(
        [_canonical(row[key]) for key in chosen], ensure_ascii=False, sort_keys=True, default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:LENGTH]


def _canonical(value: Any) -> Any:
    """Normalize Unicode and strip outer blanks, so a record has the same id in CSV and in JSON."""
    return unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else value


def first_faults(faults: Sequence[Fault]) -> list[Fault]:
    """The first `SHOWN` faults of rows, and how many more there are."""
    more = len(faults) - SHOWN
    return [*faults[:SHOWN], *([Fault(f"and {more} more rows with such a fault")] if more > 0 else [])]


def _check_keys(fields: Sequence[Mapping[str, Any]], keys: Sequence[str], origin: str) -> None:
    faults = []
    for number, row in enumerate(fields):
        missing = [key for key in keys if row.get(key) is None]
        if missing:
            lacking, present = ", ".join(map(repr, missing)), ", ".join(sorted(row)) or "no keys"
            faults.append(
                Fault(f"row {number} (counting from 0) of {origin} has no {lacking}; it has: {present}")
            )
    if faults:
        hint = Fault(
            "rows lack a required key",
            "name the right key with question_key, answer_key or text_key, or correct the rows",
        )
        raise UserError.of([*first_faults(faults), hint])
