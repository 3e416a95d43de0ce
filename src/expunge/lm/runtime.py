"""The machine a run is on: device, ranks, seeds."""

from __future__ import annotations

import atexit
import hashlib
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import numpy as np
import torch

T = TypeVar("T")


def device() -> torch.device:
    """The accelerator torch sees for this rank, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_primary() -> bool:
    """Whether this process is the first of its launch, known before the processes have met."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """Index of this process among all, 0 when there is one."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )


def world_size() -> int:
    """Number of processes that share the work, 1 when there is one."""
    return (
        torch.distributed.get_world_size()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 1
    )


def gathered(value: T) -> list[T]:
    """`value` of every rank, in the order of the ranks; picklable values only."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return cast(list[T], values)


def from_rank_0(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; called on rank 0 alone, so that ranks cannot decide differently."""
    if world_size() == 1:
        return make()
    box: list[T | None] = [make() if rank() == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return cast(T, box[0])


@atexit.register
def leave() -> None:
    """Part from the other processes of a launch, before the interpreter ends: gloo's threads may abort a process that tears them down."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def supports_bf16(where: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself rather than by emulation."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if where.type == "cpu":
        return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return where.type == "xpu"


def autocast(where: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Context in which matrix products run in a half precision; nothing changes for float32, float64 or None."""
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(where.type, dtype=dtype)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Draws that matter to a result use generators of their own all the same."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the hash of `parts`, such as (seed, "pairs", epoch): equal parts, equal draws, on any rank."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (2**63 - 1))
