"""Several processes on one machine (gloo), forked from the test."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

import torch


def on_ranks(count: int, job: Callable[[], None], *, world: int | None = None) -> None:
    """Run `job` in forked processes with the environment of torchrun, the first `count` of `world`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                from accelerate.state import AcceleratorState, GradientState

                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world or count),
                    "MASTER_ADDR": "127.0.0.1",
                }
                os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
                job()
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count
