"""Which local file stands for a dataset of the hub, and how many rows it has: the rule of `data.sources`, without reading rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
BUILDERS = ("json", "csv", "text", "parquet")
EMBEDDED = "expunge/mini"
"""The `path` of the benchmark that the package makes itself."""


def is_looked_up(hf_args: Mapping[str, Any]) -> bool:
    """Whether `path` is a name to look up: not the embedded benchmark, and not a builder with files of its own."""
    return hf_args.get("path") not in (*BUILDERS, EMBEDDED)


def local_folder(path: str, data_root: str | Path) -> Path | None:
    """The folder of a dataset: `locuslab/TOFU` is `tofu` under `data_root`; None where there is none."""
    return next((folder for folder in _folders(path, data_root) if folder.is_dir()), None)


def local_file(hf_args: Mapping[str, Any], data_root: str | Path) -> Path | None:
    """The file of `{path, name, split}` under `data_root`, or `path` itself where it is a file; None where there is neither."""
    path = str(hf_args.get("path"))
    if Path(path).expanduser().is_file():
        return Path(path).expanduser()
    name, split = hf_args.get("name"), str(hf_args.get("split") or "train").partition("[")[0]
    stems = (
        [split] if name is None else [f"{name}/{split}"] if split != "train" else [str(name), f"{name}/train"]
    )
    candidates = (
        folder / f"{stem}{suffix}"
        for folder in _folders(path, data_root)
        for stem in stems
        for suffix in SUFFIXES
    )
    return next((candidate for candidate in candidates if candidate.is_file()), None)


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


def _folders(path: str, data_root: str | Path) -> Iterator[Path]:
    own = Path(path).expanduser()
    yield own
    if not own.is_absolute():
        repository = path.rstrip("/").rpartition("/")[2]
        yield from (Path(data_root) / name for name in (path, repository.lower(), repository))
