"""Read rows from one local file: JSON, JSON Lines, CSV, parquet or plain text, recognised by content."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, UserError

_PARQUET_MAGIC = b"PAR1"


def read_fields(path: Path, sample_by: str = "line") -> list[dict[str, Any]]:
    """The rows of a file as mappings from key to value.

    Parquet is recognised by its first bytes and CSV by its suffix. A file that starts with a brace or a
    bracket is JSON or JSON Lines, whatever its suffix. Any other file is plain text, with the single key
    `text`.

    Args:
        path: the file.
        sample_by: unit of a plain-text row: a `line`, a `paragraph` (split at blank lines) or the whole
            `document`. Blank rows are dropped.

    Returns:
        One mapping per row, in file order; empty for an empty file.

    Raises:
        UserError: the file does not have the format that its content suggests.
        MissingExtraError: the file is parquet and pyarrow is not installed.
    """
    with path.open("rb") as handle:
        start = handle.read(len(_PARQUET_MAGIC))
    if start == _PARQUET_MAGIC:
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is neither parquet nor UTF-8 text: {error}", "convert it to JSON Lines in UTF-8"
        ) from error
    if path.suffix.lower() in (".csv", ".tsv"):
        return _read_csv(path, text)
    if text.lstrip()[:1] in ("{", "["):
        return _read_json(path, text)
    return [{"text": sample} for sample in _split_text(text, sample_by)]


def read_lines(path: Path) -> list[str]:
    """The short texts of a file with one text per line, such as refusals.

    The file is plain text, a CSV of one column, or JSON strings. The first line of a CSV is skipped as a
    header if it is the only line that does not end like a sentence.
    """
    if path.suffix.lower() == ".csv":
        table = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        # An unquoted comma splits a sentence into cells: join them again.
        lines = [",".join(cells).strip() for cells in table if any(cell.strip() for cell in cells)]
        if len(lines) > 1 and not _is_sentence(lines[0]) and all(map(_is_sentence, lines[1:])):
            lines = lines[1:]
        return lines
    lines = []
    for number, fields in enumerate(read_fields(path)):
        text = next((value for value in fields.values() if isinstance(value, str)), None)
        if text is None:
            raise UserError(
                f"{path}: entry {number} (counting from 0) contains no text, only the keys {sorted(fields)}",
                "write one text per line",
            )
        lines.append(text.strip())
    return lines


def _is_sentence(line: str) -> bool:
    return line[-1:] in ".!?\"'"


def _split_text(text: str, sample_by: str) -> list[str]:
    if sample_by == "document":
        samples = [text]
    elif sample_by == "paragraph":
        samples = text.split("\n\n")
    elif sample_by == "line":
        samples = text.splitlines()
    else:
        raise UserError(f"sample_by is {sample_by!r}", "known: line, paragraph, document")
    return [sample for sample in samples if sample.strip()]


def _read_json(path: Path, text: str) -> list[dict[str, Any]]:
    """Read JSON Lines if the first line is a whole object and more lines follow; else one JSON document."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    try:
        first = json.loads(lines[0][1])
    except json.JSONDecodeError:
        first = None
    if isinstance(first, dict) and (len(lines) > 1 or not _is_table(first)):
        return _as_rows(path, [_parse_line(path, number, line) for number, line in lines])
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error}",
            "write a JSON array of objects, or JSON Lines with one object per line",
        ) from error
    if isinstance(document, dict):
        if not _is_table(document):
            return [document]
        return [dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True)]
    return _as_rows(path, document)


def _is_table(document: Mapping[str, Any]) -> bool:
    """Whether an object is a table of columns: every value is a list, and all lists have the same length."""
    columns = list(document.values())
    return all(isinstance(column, list) for column in columns) and len({len(item) for item in columns}) == 1


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not valid JSON: {error}",
            "each line of JSON Lines must be one object; correct that line",
        ) from error


def _as_rows(path: Path, values: Iterable[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, value in enumerate(values):
        if isinstance(value, dict):
            rows.append(value)
        elif isinstance(value, str):
            rows.append({"text": value})
        else:
            raise UserError(
                f"{path}: row {number} (counting from 0) is {type(value).__name__}, not an object",
                "each row must be an object or a string",
            )
    return rows


def _read_csv(path: Path, text: str) -> list[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)):
        if None in row:
            raise UserError(
                f"{path}: row {number} (counting from 0) has more cells than the header",
                "quote cells that hold the delimiter",
            )
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path}") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise UserError(f"{path} is damaged: {error}", "download or write the parquet file again") from error
    return rows
