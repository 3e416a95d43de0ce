"""Which local file stands for a dataset: one rule, for validation and for reading. No rows are read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
"""Suffixes of files that hold rows, in the order in which they are looked for."""
ROW_SUFFIXES = (*SUFFIXES, ".tsv", ".raw")
"""These, and those of files that are read only where a path names them."""
BUILDERS = ("json", "csv", "text", "parquet")
"""Values of `path` that name a kind of files, which `data_files` lists."""
EMBEDDED = "expunge/mini"
"""The `path` of the benchmark that the package makes itself."""


def is_looked_up(hf_args: Mapping[str, Any]) -> bool:
    """Whether `path` is a name to look up: neither the embedded benchmark nor a builder with its own files."""
    return hf_args.get("path") not in (*BUILDERS, EMBEDDED)


def local_folder(path: str, data_root: str | Path) -> Path | None:
    """The folder of a dataset: `locuslab/TOFU` is `tofu` under `data_root`; None where there is none."""
    return next((folder for folder in folders(path, data_root) if folder.is_dir()), None)


def local_file(hf_args: Mapping[str, Any], data_root: str | Path) -> Path | None:
    """The file of `{path, name, split}` under `data_root`, or `path` itself if it is a file; else None."""
    split = str(hf_args.get("split") or "train").partition("[")[0]
    places = candidates(str(hf_args.get("path")), hf_args.get("name"), split, data_root)
    return next((place for place in places if place.is_file()), None)


def candidates(path: str, name: str | None, split: str, data_root: str | Path | None) -> Iterator[Path]:
    """Local files that could hold the rows of a dataset, the likeliest first.

    Args:
        path: of `hf_args`.
        name: the configuration, such as `forget10`; None = there is none.
        split: without a slice.
        data_root: folder of local datasets; None = there is none.
    """
    for folder in folders(path, data_root):
        if folder.suffix.lower() in ROW_SUFFIXES or folder.is_file():
            yield folder
            continue
        stems = [split] if name is None else [str(name), f"{name}/{split}"]
        if name is not None and split != "train":
            stems = stems[1:]  # NAME.json holds the train split; another split of it has a file of its own.
        for stem in stems:
            yield from (folder / f"{stem}{suffix}" for suffix in SUFFIXES)


def is_local_path(path: str) -> bool:
    """Whether a path can only be local: absolute, relative by dots, an existing folder, or a file of rows."""
    return (
        path.startswith((".", "/", "~")) or Path(path).suffix.lower() in ROW_SUFFIXES or Path(path).exists()
    )


def local_names(folder: Path) -> list[str]:
    """The names that can be asked for in a dataset's folder."""
    return sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES})


def count_rows(path: Path) -> int | None:
    """Rows of a JSON Lines file by its lines; None for kinds of files that have to be parsed."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    with path.open("rb") as handle:
        if handle.read(1) != b"{":
            return None
        handle.seek(0)
        return sum(1 for line in handle if line.strip())


def folders(path: str, data_root: str | Path | None) -> Iterator[Path]:
    """Where a dataset's folder could be: for `locuslab/TOFU` the path itself, or `tofu` under `data_root`."""
    own = Path(path).expanduser()
    yield own
    if data_root is None or own.is_absolute():
        return
    root, repository = Path(data_root), path.rstrip("/").rpartition("/")[2]
    below = [root / path, root / repository.lower()]
    below += [root / repository] if (root / repository).is_dir() else []
    yield from (folder for folder in dict.fromkeys(below) if folder != own)
