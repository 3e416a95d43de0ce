"""The location of a model: the embedded model, a folder, a GGUF file, or a name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.data import mini


@dataclass(frozen=True)
class Location:
    """A place to load from.

    Attributes:
        given: the path or name as the user typed it.
        source: the argument for transformers: a folder or a hub name.
        folder: the folder, None for a hub name.
        gguf_file: the GGUF file in the folder, or None.
    """

    given: str
    source: str
    folder: Path | None
    gguf_file: str | None


def locate(args: Mapping[str, Any], section: str) -> Location:
    """Resolve `pretrained_model_name_or_path` without loading anything.

    Raises:
        UserError: no path is given, the path does not exist, or the file is not a GGUF file.
    """
    given = args.get("pretrained_model_name_or_path")
    if not given:
        raise UserError(
            f"{section}.pretrained_model_name_or_path is not given",
            "give a folder, a hub name, or expunge/mini",
        )
    given, gguf_file = str(given), args.get("gguf_file")
    if given == mini.HUB_PATH:
        folder = mini.model_folder()
        return Location(given, str(folder), folder, None)
    path = Path(given).expanduser()
    if path.is_dir():
        return Location(given, str(path), path, gguf_file)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"{section}: {given} is a file, not a model folder", f"give the folder {path.parent}"
            )
        return Location(given, str(path.parent), path.parent, path.name)
    if given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise UserError(
            f"{section}: there is no model at {given}",
            f"looked for the folder {path.absolute()}; correct pretrained_model_name_or_path",
        )
    return Location(given, given, None, gguf_file)


def check_model_folder(place: Location) -> None:
    """Refuse a folder that cannot be a model before anything slow is imported or read.

    Raises:
        UserError: the folder has no configuration file, or the GGUF file does not exist.
    """
    if place.folder is None:
        return
    if place.gguf_file is not None:
        if not (place.folder / place.gguf_file).is_file():
            raise UserError(
                f"there is no GGUF file {place.gguf_file} in {place.given}",
                f"looked in {place.folder.absolute()}; correct gguf_file",
            )
        return
    if (place.folder / "config.json").is_file():
        return
    found = ", ".join(sorted(path.name for path in place.folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{place.given} is not a model folder: it has no config.json",
        f"give a folder with config.json and weights; {place.folder.absolute()} contains {found}",
    )


def not_found(place: Location, error: Exception, cache_dir: Any) -> UserError:
    """The error for something that transformers could not load, with the places searched."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if place.folder is not None:
        return UserError(
            f"cannot load {place.given}: {reason}",
            f"the folder {place.folder.absolute()} is incomplete or damaged; copy it again",
        )
    from huggingface_hub import constants

    offline = " (HF_HUB_OFFLINE is set, so the hub was not contacted)" if constants.HF_HUB_OFFLINE else ""
    cache = cache_dir or constants.HF_HUB_CACHE
    return UserError(
        f"cannot load {place.given}: {reason}",
        f"looked for a folder {Path(place.given).absolute()}, in the cache {cache}, and on the hub{offline}; "
        "give a local folder, fill the cache, or check the name and your access",
    )
