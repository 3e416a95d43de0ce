"""Find the rows of a data set: a named file, a file of the data root, the embedded benchmark, or the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.config.local_data import BUILDERS, EMBEDDED, ROW_SUFFIXES, SUFFIXES, candidates, is_local_path
from expunge.core.errors import MissingDataError, MissingExtraError, UserError, nearest
from expunge.data.formats import read_fields
from expunge.data.saved import is_saved, read_saved

_SPLIT = re.compile(r"(?P<name>[\w.-]+?)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Source:
    """The content of `hf_args`.

    Attributes:
        path: a file, a folder, a hub name, or one of the builders `json`, `csv`, `text`, `parquet` (with
            `data_files`).
        name: the configuration, such as `forget10`.
        split: the split without its slice, default `train`.
        slice: (start, stop) as written, each a number or a percentage; (None, None) = all rows.
        revision: revision of the hub repository.
        data_files: files of a builder.
        sample_by: unit of a plain-text row.
        rest: other arguments, passed only to the hub.
    """

    path: str
    name: str | None = None
    split: str = "train"
    slice: tuple[str | None, str | None] = (None, None)
    revision: str | None = None
    data_files: Any = None
    sample_by: str = "line"
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, hf_args: Mapping[str, Any]) -> Source:
        """Read the `hf_args` of a configuration.

        Raises:
            UserError: `path` is missing, or the split cannot be read.
        """
        args = {key: value for key, value in hf_args.items() if value is not None}
        if "path" not in args:
            raise UserError(
                f"hf_args has no 'path': {dict(hf_args)}",
                "set path to a local file, or to a hub name such as locuslab/TOFU",
            )
        split = str(args.pop("split", "train"))
        match = _SPLIT.fullmatch(split)
        if match is None:
            raise UserError(
                f"split {split!r} cannot be read",
                "give one split, optionally with a slice: train, train[:10], train[10%:]",
            )
        return cls(
            path=str(args.pop("path")),
            name=str(args.pop("name")) if "name" in args else None,
            split=match["name"],
            slice=(match["start"], match["stop"]),
            revision=args.pop("revision", None),
            data_files=args.pop("data_files", None),
            sample_by=str(args.pop("sample_by", "line")),
            rest=args,
        )

    @property
    def label(self) -> str:
        """The short name of the rows: `name`, else a split other than `train`, else the stem of the path."""
        if self.data_files is not None:
            return self.path
        return self.name or (Path(self.path).stem if self.split == "train" else self.split)

    def cut(self, size: int) -> range:
        """The positions in `range(size)` that the slice keeps."""

        def position(bound: str | None) -> int | None:
            if bound is None:
                return None
            return round(size * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

        return range(size)[position(self.slice[0]) : position(self.slice[1])]


def read_source(source: Source, data_root: Path | None) -> tuple[list[dict[str, Any]], str, Path | None]:
    """All rows of a source before slicing, a text that says where they come from, and the local file.

    The file is None for rows from the hub.

    Raises:
        MissingDataError: nothing was found; the message lists the places searched and near matches.
        MissingExtraError: only the hub is left to search, and the package `datasets` is not installed.
    """
    if source.path in BUILDERS and source.data_files is not None:
        files = _data_files(source, data_root)
        rows = [row for file in files for row in read_fields(file, source.sample_by)]
        return rows, ", ".join(map(str, files)), files[0]
    if source.name is None and is_saved(source.path):
        fields, file = read_saved(source.path, source.split)
        return fields, source.path, file
    if source.path == EMBEDDED:
        from expunge.data.mini import benchmark_folder

        folder = benchmark_folder()
        looked = [folder / f"{source.name}{suffix}" for suffix in SUFFIXES]
    else:
        looked = list(candidates(source.path, source.name, source.split, data_root))
    for place in looked:
        if place.is_file():
            return read_fields(place, source.sample_by), str(place), place
    local = source.path == EMBEDDED or is_local_path(source.path)
    if local or any(_holds_rows(place.parent) for place in looked):
        # The folder of the data set exists, so a missing split is probably a typing error: skip the hub.
        raise _not_found(source, looked, data_root, "")
    origin = f"hub: {source.path} ({source.name or 'default'}, {source.split})"
    return _read_hub(source, looked, data_root), origin, None


def _holds_rows(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix.lower() in ROW_SUFFIXES for file in folder.iterdir())


def _data_files(source: Source, data_root: Path | None) -> list[Path]:
    given = source.data_files
    if isinstance(given, Mapping):
        if source.split not in given:
            raise UserError(
                f"data_files has no split {source.split!r}", f"its splits are: {', '.join(map(str, given))}"
            )
        given = given[source.split]
    names = [given] if isinstance(given, (str, Path)) else list(given)
    files = []
    for name in names:
        looked = [Path(name).expanduser()]
        if data_root is not None:
            looked.append(data_root / name)
        found = next((place for place in looked if place.is_file()), None)
        if found is None:
            places = ", ".join(str(place.absolute()) for place in looked)
            raise MissingDataError(
                f"the file {str(name)!r} of data_files does not exist; looked for {places}",
                "correct data_files, or put the file there",
            )
        files.append(found)
    if not files:
        raise UserError(f"data_files of {source.path!r} is empty", "name at least one file")
    return files


def _read_hub(source: Source, looked: list[Path], data_root: Path | None) -> list[dict[str, Any]]:
    """Rows from the hub, through the package `datasets`; no network call if HF_HUB_OFFLINE=1 is set."""
    try:
        import datasets
    except ImportError as error:
        local = "; ".join(_shortened(looked)) or "no data root is set"
        raise MissingExtraError(
            "datasets",
            "hub",
            f"{source.path} ({source.name}) is not among the local files ({local}); the hub",
        ) from error
    try:
        loaded = datasets.load_dataset(
            source.path,
            name=source.name,
            split=source.split,
            revision=source.revision,
            data_files=source.data_files,
            **source.rest,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise _not_found(source, looked, data_root, f"the hub: {reason}") from error
    return [dict(row) for row in loaded]


def _not_found(source: Source, looked: list[Path], data_root: Path | None, hub: str) -> MissingDataError:
    """The error for a missing data set: places searched, near matches, and where to put the file."""
    wanted = source.name or source.split
    message = [
        f"data set {source.path!r}"
        + (f", split {wanted!r}," if source.name or source.split != "train" else "")
        + " was not found; looked for"
    ]
    message += [f"    {place}" for place in _shortened(looked)] + ([f"    {hub}"] if hub else [])
    folders = [folder for folder in dict.fromkeys(place.parent for place in looked) if folder.is_dir()]
    named = source.name is not None or not is_local_path(source.path)
    target = wanted if named else Path(source.path).stem
    there = sorted(
        {file.stem for folder in folders for file in folder.iterdir() if file.suffix.lower() in ROW_SUFFIXES}
    )
    near = nearest(target, there)
    hints = []
    if near:
        more = f" also near: {', '.join(near[1:])}" if near[1:] else ""
        hints.append(f"did you mean {near[0]!r}?{more}")
    if there and named:
        hints.append(f"available: {', '.join(there)}")
    if data_root is None and hub:
        hints.append("set paths.data_root (or EXPUNGE_DATA) to your data folder")
    place = next((spot for spot in looked if spot.suffix == ".json"), looked[0] if looked else None)
    if place is not None:
        hints.append(f"or write the rows as JSON Lines into {_preferred(source, data_root) or place}")
    return MissingDataError("\n".join(message), "\n     ".join(hints))


def _preferred(source: Source, data_root: Path | None) -> Path | None:
    if data_root is None or is_local_path(source.path) or source.path == EMBEDDED:
        return None
    stem = source.split if source.name is None else source.name
    if source.name is not None and source.split != "train":
        stem = f"{source.name}/{source.split}"
    return data_root / source.path.rsplit("/", 1)[-1].lower() / f"{stem}.json"


def _shortened(looked: list[Path]) -> list[str]:
    """Places in short form: `FOLDER/NAME.{json,jsonl,...}` instead of one path per suffix."""
    grouped: dict[Path, list[str]] = {}
    for place in looked:
        grouped.setdefault(place.absolute().with_suffix(""), []).append(place.suffix.lstrip("."))
    return [
        f"{stem}.{{{','.join(suffixes)}}}" if len(suffixes) > 1 else f"{stem}.{suffixes[0]}"
        for stem, suffixes in grouped.items()
    ]
