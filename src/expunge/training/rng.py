"""The global random state of a process, as plain tensors: nothing in a checkpoint has to be unpickled into objects."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def rng_state() -> dict[str, Tensor]:
    """State of Python's, numpy's and torch's global generators, and of every accelerator of this process."""
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
    """Restore what `rng_state` gave; accelerators that are not there now are passed over."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    np.random.set_state(
        (
            "MT19937",
            state["numpy"].numpy().astype(np.uint32),
            position,
            has_gauss,
            float(state["numpy_cached"].item()),
        )
    )
    torch.set_rng_state(state["torch"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda_{device}" in state:
            torch.cuda.set_rng_state(state[f"cuda_{device}"], device)


def save_rng_state(path: Path) -> None:
    """Write the random state as safetensors."""
    save_file({name: value.contiguous() for name, value in rng_state().items()}, str(path))


def load_rng_state(path: Path) -> None:
    """Restore the random state from safetensors."""
    set_rng_state(load_file(str(path)))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """What runs inside leaves the random state as it was: evaluating during training changes nothing about the training."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
