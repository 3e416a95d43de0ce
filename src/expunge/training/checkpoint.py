"""Checkpoints that are either complete or absent.

A checkpoint is written under another name, sealed with a manifest and a mark, and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from expunge.core.errors import UserError
from expunge.core.files import (
    COMPLETE_MARK,
    is_complete,
    mark_complete,
    read_json,
    reporting_write_errors,
    write_json,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = re.compile(r"\.checkpoint-\d+\.(partial|removed)")


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run_dir / f"checkpoint-{step}"


def partial_folder(run_dir: Path, step: int) -> Path:
    """The folder in which the checkpoint of a step is written; never read as a checkpoint."""
    return run_dir / f".checkpoint-{step}.partial"


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, f"{folder} is not named checkpoint-N"
    return int(match[1])


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest step first."""
    found = [
        path for path in run_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name) and not missing_from(path)
    ]
    return sorted(found, key=step_of)


def newest_complete_checkpoint(run_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step; None if there is none."""
    found = complete_checkpoints(run_dir)
    return found[-1] if found else None


def remove_half_written(run_dir: Path) -> list[Path]:
    """Remove what is left if a process died while it wrote or removed a checkpoint; returns the folders."""
    if not run_dir.is_dir():
        return []
    left = [path for path in run_dir.iterdir() if path.is_dir() and _PARTIAL.fullmatch(path.name)]
    left += [
        path
        for path in run_dir.glob("checkpoint-*")
        if path.is_dir() and _NAME.fullmatch(path.name) and not is_complete(path)
    ]
    for path in left:
        logger.warning("removing the half-written checkpoint %s", path)
        shutil.rmtree(path)
    return left


def seal(partial: Path, folder: Path) -> None:
    """Turn a filled folder into a checkpoint: manifest, fsync, mark, rename.

    Args:
        partial: the folder, completely written.
        folder: the checkpoint's final folder, on the same file system; an existing one is replaced.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    write_json(
        partial / MANIFEST,
        {str(path.relative_to(partial)): [path.stat().st_size, _digest(path)] for path in files},
    )
    mark_complete(partial)
    _sync(partial)
    if folder.exists():
        remove_checkpoint(folder)
    partial.rename(folder)
    _sync(folder.parent)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; it is renamed first, so that it never looks complete if the process dies."""
    doomed = folder.with_name(f".{folder.name}.removed")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def rotate(run_dir: Path, limit: int | None, best: Path | None) -> None:
    """Keep at most `limit` checkpoints, the newest and the best among them; None or 0 keeps all."""
    if not limit or limit < 0:
        return
    found = complete_checkpoints(run_dir)
    protected = {path.resolve() for path in [*found[-1:], *([best] if best else [])]}
    excess = len(found) - max(limit, len(protected))
    for path in [path for path in found if path.resolve() not in protected][: max(0, excess)]:
        remove_checkpoint(path)


def missing_from(folder: Path) -> str | None:
    """What a checkpoint lacks, by its mark and its files' names and sizes; None if it is complete."""
    if not is_complete(folder):
        return f"it has no {COMPLETE_MARK}, so it was never finished"
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    for name, (size, _) in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            return f"the file {name} is missing"
        if path.stat().st_size != size:
            return f"the file {name} has {path.stat().st_size} bytes instead of {size}"
    return None


def verify(folder: Path) -> None:
    """Read all files of a checkpoint and compare them with its manifest.

    Raises:
        UserError: there is no such folder, or it is not a complete, undamaged checkpoint of this tool.
    """
    other = newest_complete_checkpoint(folder.parent) if folder.parent.is_dir() else None
    hint = (
        f"the newest complete one is {other}"
        if other and other != folder
        else "name another checkpoint, or start again with overwrite=true"
    )
    if not folder.is_dir():
        raise UserError(f"no such checkpoint: {folder}", hint)
    if not _NAME.fullmatch(folder.name):
        raise UserError(f"{folder} is not a checkpoint of expunge: its name is not checkpoint-N", hint)
    fault = missing_from(folder)
    if fault is None:
        damaged = [
            name for name, (_, digest) in _manifest(folder).items() if _digest(folder / name) != digest
        ]
        fault = f"the contents of {', '.join(damaged)} have changed since it was written" if damaged else None
    if fault is not None:
        raise UserError(f"the checkpoint {folder} is damaged: {fault}", hint)


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk into a `UserError`, whichever library reports it."""
    try:
        with reporting_write_errors(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        # safetensors and torch.save report a failed write with their own errors, without an error number.
        if any(words in str(error) for words in ("No space left", "file write failed", "unexpected pos")):
            with reporting_write_errors(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _manifest(folder: Path) -> dict[str, list[Any]]:
    try:
        manifest = read_json(folder / MANIFEST)
        return {str(name): [int(size), str(digest)] for name, (size, digest) in manifest.items()}
    except (UserError, AttributeError, TypeError, ValueError):
        return {MANIFEST: [-1, "unreadable"]}


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
