"""Folders that `datasets.save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.core.errors import MissingExtraError, UserError, unknown

DICT_FILE, SET_FILE = "dataset_dict.json", "dataset_info.json"


def is_saved(path: str) -> bool:
    """Whether a path is a folder that `save_to_disk` wrote, with one set of rows or several splits."""
    folder = Path(path).expanduser()
    return (folder / DICT_FILE).is_file() or (
        (folder / SET_FILE).is_file() and (folder / "state.json").is_file()
    )


def read_saved(path: str, split: str) -> tuple[list[dict[str, Any]], Path]:
    """The rows of a split of a saved folder, and the file that represents the folder.

    Raises:
        MissingExtraError: the package `datasets` is not installed.
        UserError: the split does not exist (a folder with one set of rows has only `train`), or the folder is
            damaged.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", f"reading {path}, which save_to_disk wrote,") from error
    folder = Path(path).expanduser()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is damaged: {error}", "write it again with save_to_disk") from error
    if (folder / DICT_FILE).is_file():
        if split not in loaded:
            raise UserError.of([unknown(f"split of {folder}", split, list(loaded))])
        return [dict(row) for row in loaded[split]], folder / DICT_FILE
    if split != "train":
        raise UserError(
            f"{folder} has no split {split!r}: it has one set of rows without splits", "leave out the split"
        )
    return [dict(row) for row in loaded], folder / SET_FILE
