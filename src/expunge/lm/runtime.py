"""The machine of a run: device, ranks, seeds."""

from __future__ import annotations

import atexit
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from expunge.core.errors import Fault, UserError

T = TypeVar("T")


def device() -> torch.device:
    """The accelerator torch sees for this rank, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_primary() -> bool:
    """Whether this process is rank 0 of its launch; also valid before the process group is initialized."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """Index of this process; 0 if there is only one."""
    return (
        torch.distributed.get_rank()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 0
    )


def world_size() -> int:
    """Number of processes that share the work, at least 1."""
    return (
        torch.distributed.get_world_size()
        if torch.distributed.is_available() and torch.distributed.is_initialized()
        else 1
    )


def gathered(value: T) -> list[T]:
    """The `value` of every rank, in rank order; picklable values only."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return cast(list[T], values)


def from_rank_0(make: Callable[[], T]) -> T:
    """Call `make` only on rank 0 and return its result on every rank, so ranks cannot decide differently.

    If `make` fails, rank 0 raises the error, and the other ranks end as in `agreed`.
    """
    if world_size() == 1:
        return make()
    made, error = None, None
    if rank() == 0:
        try:
            made = make()
        except Exception as caught:
            error = caught
    box: list[Any] = [made, error is not None]
    torch.distributed.broadcast_object_list(box, src=0)
    if error is not None:
        raise error
    if box[1]:
        raise SystemExit(0)
    return cast(T, box[0])


def agreed(make: Callable[[], T]) -> T:
    """Call `make` on every rank; if one rank raises a `UserError`, all ranks stop and the faults appear once.

    Rank 0 raises the faults. The other ranks end with exit code 0: a launcher stops all processes when one
    fails, and rank 0 must stay alive to report the faults. Its exit code is the exit code of the launch.

    Raises:
        UserError: on rank 0, the faults of all ranks.
    """
    if world_size() == 1:
        return make()
    made, faults = None, tuple[Fault, ...]()
    try:
        made = make()
    except UserError as error:
        faults = error.faults
    found = dict.fromkeys(fault for part in gathered(faults) for fault in part)
    if found and rank() != 0:
        raise SystemExit(0)
    if found:
        raise UserError.of(found)
    return cast(T, made)


def whole(value: Any) -> Any:
    """A tensor of split weights as a whole; all ranks call this. Any other value is returned as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def join_ranks() -> None:
    """Join the process group of torchrun's environment; does nothing for one process or if already joined."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ
    if alone or not torch.distributed.is_available() or torch.distributed.is_initialized():
        return
    where = device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    # gloo exchanges Python values (tables, faults) on the CPU; nccl exchanges tensors on the GPU.
    with meeting():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")


@contextmanager
def meeting() -> Iterator[None]:
    """Report why processes cannot meet, in a block where they do.

    Raises:
        UserError: the port is in use, the first process cannot be reached, or one did not come in time.
    """
    try:
        yield
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the processes of this run cannot meet at {place}: {reason}",
            "choose a free port (torchrun --master_port PORT), and start every process of the launch",
        ) from error


@atexit.register
def leave() -> None:
    """Leave the process group before the interpreter ends; else gloo's threads may abort the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def supports_bf16(where: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively, without emulation."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if where.type == "cpu":
        return hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return where.type == "xpu"


def autocast(where: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Context that runs matrix products in half precision; no effect for float32, float64 or None."""
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(where.type, dtype=dtype)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. Draws that affect a result still use their own generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with the hash of `parts`, such as (seed, "pairs", epoch); equal on all ranks."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % (2**63 - 1))
