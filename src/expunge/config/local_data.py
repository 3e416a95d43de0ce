"""Find the local file of a dataset: one rule, for validation and for reading. No rows are read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
"""Suffixes of files with rows, in search order."""
ROW_SUFFIXES = (*SUFFIXES, ".tsv", ".raw")
"""`SUFFIXES`, and the suffixes of files that are read only if a path names them."""
BUILDERS = ("json", "csv", "text", "parquet")
"""Values of `path` that name a file format; `data_files` then lists the files."""
EMBEDDED = "expunge/mini"
"""The `path` of the benchmark that this package generates."""


def local_folder(path: str, data_root: str | Path) -> Path | None:
    """The folder of a dataset: `locuslab/TOFU` is `tofu` under `data_root`; None if there is no folder."""
    return next((folder for folder in folders(path, data_root) if folder.is_dir()), None)


def local_file(hf_args: Mapping[str, Any], data_root: str | Path) -> Path | None:
    """The file for `{path, name, split}` under `data_root`, or `path` itself if it is a file; else None."""
    split = str(hf_args.get("split") or "train").partition("[")[0]
    places = candidates(str(hf_args.get("path")), hf_args.get("name"), split, data_root)
    return next((place for place in places if place.is_file()), None)


def candidates(path: str, name: str | None, split: str, data_root: str | Path | None) -> Iterator[Path]:
    """Local files that may hold the rows of a dataset, in search order.

    Args:
        path: `path` of `hf_args`.
        name: the name of the configuration, such as `forget10`; None = no name.
        split: the split without a slice.
        data_root: folder of local datasets; None = no such folder.
    """
    for folder in folders(path, data_root):
        if folder.suffix.lower() in ROW_SUFFIXES or folder.is_file():
            yield folder
            continue
        stems = [split] if name is None else [str(name), f"{name}/{split}"]
        if name is not None and split != "train":
            stems = stems[1:]  # NAME.json holds only the train split.
        for stem in stems:
            yield from (folder / f"{stem}{suffix}" for suffix in SUFFIXES)


def is_local_path(path: str) -> bool:
    """Whether a path is local: absolute, begins with a dot, exists, or has a suffix of `ROW_SUFFIXES`."""
    return (
        path.startswith((".", "/", "~")) or Path(path).suffix.lower() in ROW_SUFFIXES or Path(path).exists()
    )


def count_rows(path: Path) -> int | None:
    """Number of rows of a JSON Lines file, by its lines; None for files that must be parsed to count rows."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    with path.open("rb") as handle:
        if handle.read(1) != b"{":
            return None
        handle.seek(0)
        return sum(1 for line in handle if line.strip())


def folders(path: str, data_root: str | Path | None) -> Iterator[Path]:
    """Possible folders of a dataset: for `locuslab/TOFU` the path itself, or `tofu` under `data_root`."""
    own = Path(path).expanduser()
    yield own
    if data_root is None or own.is_absolute():
        return
    root, repository = Path(data_root), path.rstrip("/").rpartition("/")[2]
    below = [root / path, root / repository.lower()]
    below += [root / repository] if (root / repository).is_dir() else []
    yield from (folder for folder in dict.fromkeys(below) if folder != own)
