"""Jobs that run a few lines of Python instead of a training."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from expunge.sweeps.job import Job

SCRIPT = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path) -> SCRIPT:
    """A job that runs Python code, in the folder `tmp_path/NAME`; its word after the code is that folder."""

    def make(name: str, code: str, **environment: str) -> Job:
        folder = tmp_path / "runs" / name
        return Job((sys.executable, "-c", code, str(folder)), folder, environment=environment)

    return make


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """A shell starts background processes with SIGINT ignored, and they pass that on to their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums have the same order in this process and in those of jobs, which copy the variable."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
