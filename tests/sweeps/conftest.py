"""Jobs that run a few lines of Python instead of a training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.sweeps.job import Job

SCRIPT = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> SCRIPT:
    """A job that runs Python code, in the folder `tmp_path/NAME`; its word after the code is that folder."""

    def make(name: str, code: str, **environment: str) -> Job:
        folder = tmp_path / "runs" / name
        return Job((sys.executable, "-c", code, str(folder)), folder, environment=environment)

    return make
