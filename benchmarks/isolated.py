"""A measurement in a separate process, so that its peak memory does not include other work."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# With this, glibc returns freed buffers to the system. Otherwise it keeps tens of MB, a different amount in
# each run. It also takes more time.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def isolated(function: str, /, environment: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """Call `module:function(**arguments)` in a new process.

    Args:
        function: what to call; it must return something JSON-like.
        environment: variables of the new process.
        arguments: JSON-like.

    Returns:
        The result of the function.

    Raises:
        RuntimeError: the process failed; the message ends with its error output.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments)]
    # On Linux the peak of a new process includes the memory of the process that started it. So the caller
    # must not import anything large.
    assert "torch" not in sys.modules, "the peak memory of the new process would include this process"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def best_of(rounds: int, calls: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Call several functions in turn, for a number of rounds, and keep the smallest of each value.

    In every second round the allocator returns memory to the system. These rounds show the smallest peak, the
    other rounds the shortest time.

    Args:
        rounds: number of rounds; the other load of the machine may differ between them.
        calls: variant -> function and arguments; each returns a dict of numbers.
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
