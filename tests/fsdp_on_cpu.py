"""Runs a script with FSDP2 on CPU processes: `python fsdp_on_cpu.py SCRIPT ARGUMENTS`.

accelerate 1.15 knows FSDP on accelerators only: on CPUs its state stays MULTI_CPU, which is DDP. Here the
state becomes FSDP if a plugin was given. Nothing else needs a GPU.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

start = AcceleratorState.__init__


def started(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    """The state, with FSDP on CPUs."""
    start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


def apply() -> None:
    """Turn it on in this process."""
    AcceleratorState.__init__ = started  # type: ignore[method-assign]


if __name__ == "__main__":
    apply()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
