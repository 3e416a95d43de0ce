"""A measurement in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# glibc then gives buffers back to the system when they are freed, instead of keeping tens of MB of them, more
# or less from run to run. It also takes more time.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def isolated(function: str, /, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """Call `module:function(**arguments)` in a new process.

    Args:
        function: what to call; gives something JSON-like.
        environment: variables of the new process.
        arguments: JSON-like.

    Returns:
        What it gave.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments)]
    # Linux counts what the starting process held into the peak of the new one, so whoever calls this must
    # import nothing heavy.
    assert "torch" not in sys.modules, "the peak memory of the new process would be this one's"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def best_of(rounds: int, calls: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Call several functions one after the other, so many times, and keep the least of each value.

    Every second round lets the allocator give memory back: it shows the least peak, the others the least
    time.

    Args:
        rounds: how many times; what else the machine does comes and goes between them.
        calls: variant -> function and arguments; each gives a dict of numbers.
    """
    found: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for variant, (function, arguments) in calls.items():
            run = isolated(function, GIVES_BACK if number % 2 else None, **arguments)
            known = found.setdefault(variant, run)
            found[variant] = {name: min(value, run[name]) for name, value in known.items()}
    return found


def main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
