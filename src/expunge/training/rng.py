"""The global random state of a process, as plain tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


def rng_state() -> dict[str, Tensor]:
    """The state of the global generators of Python, numpy and torch, and of all GPUs of this process."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert (version, name) == (3, "MT19937"), "the generators of Python and of numpy's global state"
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_cached": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda_{device}": value for device, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Restore what `rng_state` returned; states of GPUs that this machine lacks are ignored."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    keys, cached = state["numpy"].numpy().astype(np.uint32), float(state["numpy_cached"].item())
    position, has_gauss = state["numpy_position"].tolist()
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda_{device}" in state:
            torch.cuda.set_rng_state(state[f"cuda_{device}"], device)


def save_rng_state(folder: Path, rank: int) -> None:
    """Write the random state of a rank into a checkpoint."""
    state = {name: value.contiguous() for name, value in rng_state().items()}
    save_file(state, str(_file(folder, rank)))


def load_rng_state(folder: Path, rank: int) -> None:
    """Restore the random state of a rank from a checkpoint, if it is there."""
    path = _file(folder, rank)
    if path.is_file():
        set_rng_state(load_file(str(path)))
    else:
        logger.warning(
            "%s is missing (another number of ranks?): dropout will differ from an uninterrupted run", path
        )


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rng_state_{rank}.safetensors"


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the random state at the end, so that an evaluation does not change the training."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
