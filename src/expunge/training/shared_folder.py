"""All processes of a run must see one folder: checkpoints and results are written once, and read by all."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from uuid import uuid4

from expunge.core.errors import UserError
from expunge.lm import runtime

PATIENCE = 10.0
"""Seconds that a network file system has to show a new file."""


def check_shared(folder: Path, patience: float = PATIENCE) -> None:
    """Check that every process sees a file that the first one has written; all processes call this.

    Args:
        folder: of the run; the first process creates it if needed.
        patience: seconds to wait for the file.

    Raises:
        UserError: on every process: the machines that do not see the file.
    """
    if runtime.world_size() == 1:
        return

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        name = f".seen-{uuid4().hex}"
        (folder / name).touch()
        return name

    token = folder / runtime.from_rank_0(write)
    until = time.monotonic() + patience
    while not (seen := token.is_file()) and time.monotonic() < until:
        time.sleep(0.1)
    blind = sorted({name for name in runtime.gathered(None if seen else platform.node()) if name is not None})
    if runtime.rank() == 0:
        token.unlink()
    if blind:
        raise UserError(
            f"{', '.join(blind)} does not see the files of the first process in {folder}",
            "put paths.output_dir on storage that all machines share",
        )
