"""The machine a run is on: device, ranks, seeds."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import torch


def device() -> torch.device:
    """The accelerator torch sees for this rank, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def rank() -> int:
    """Index of this process among all, 0 when there is one."""
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes that share the work, 1 when there is one."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Draws that matter to a result use generators of their own all the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the hash of `parts`, such as (seed, "pairs", epoch): equal parts, equal draws, on any rank."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (2**63 - 1))
