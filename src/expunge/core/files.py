"""Atomic writes (temporary name, fsync, rename): a file is complete or absent. Marks of complete folders."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError

COMPLETE_MARK = ".complete"


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn the error of a full disk or a folder without write permission into a `UserError` with the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left on the disk while writing {path}",
                "free some space or set paths.output_dir to another disk",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"cannot write {path}: {error.strerror}",
                "set paths.output_dir to a folder with write permission",
            ) from error
        raise


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, then rename it to `path`.

    Args:
        path: the file to create or replace; missing folders are created.
        write: called with the temporary path; writes the content.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            # The temporary file is readable by its owner alone; a mask is read by setting another one.
            os.umask(mask := os.umask(0))
            temporary.chmod(0o666 & ~mask)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically; NaN and infinity become null, because JSON has neither."""
    write_text(
        path, json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file does not exist, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}", f"looked in {path.parent.resolve()}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}",
            "the file is damaged or is another kind of file; create it again",
        ) from error


def without_nan(value: Any) -> Any:
    """`value` with None for every NaN or infinity, and the Python value for every numpy scalar."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def mark_complete(folder: Path) -> None:
    """Mark `folder` as completely written; this is its last write."""
    write_text(folder / COMPLETE_MARK, "")


def is_complete(folder: Path) -> bool:
    """Whether `folder` has the mark of `mark_complete`."""
    return (folder / COMPLETE_MARK).is_file()
