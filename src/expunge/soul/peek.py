"""The columns of a local file of rows; they distinguish questions from texts before anything runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, UserError
from expunge.core.files import read_json


def columns(path: Path) -> tuple[set[str], list[str]]:
    """The columns of a file or of a folder of `datasets.save_to_disk`, and the splits of the folder.

    A file is JSON, JSON Lines, CSV, TSV, parquet or text, recognised by content.

    Raises:
        UserError: the folder is of another kind, or the file cannot be read.
    """
    if path.is_dir():
        return _saved(path)
    with path.open("rb") as handle:
        start = handle.read(4)
    if start == b"PAR1":
        return _parquet(path), []
    if path.suffix.lower() in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as text:
            table = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return set(next(table, [])), []
    with path.open(encoding="utf-8-sig", errors="replace") as text:
        line = next((line for line in text if line.strip()), "")
    return (_json(path, line) if line.lstrip()[:1] in ("{", "[") else {"text"}), []


def _json(path: Path, line: str) -> set[str]:
    """The keys of the first record: the first line if it is valid JSON, else the whole document."""
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError:
        record = read_json(path)
    if isinstance(record, list):
        record = record[0] if record else {}
    return set(record) if isinstance(record, dict) else {"text"}


def _parquet(path: Path) -> set[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path}") from error
    try:
        return set(parquet.read_schema(path).names)
    except ArrowInvalid as error:
        raise UserError(f"{path} is damaged: {error}", "download or write the parquet file again") from error


def _saved(folder: Path) -> tuple[set[str], list[str]]:
    parts = folder / "dataset_dict.json"
    splits = list(read_json(parts)["splits"]) if parts.is_file() else []
    info = folder / splits[0] / "dataset_info.json" if splits else folder / "dataset_info.json"
    if not info.is_file():
        raise UserError(
            f"{folder} is not a folder of datasets.save_to_disk",
            "give one of the files in it, or a folder that datasets.save_to_disk wrote",
        )
    return set(read_json(info).get("features") or {}), splits
