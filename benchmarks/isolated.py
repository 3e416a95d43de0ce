"""A measurement in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def isolated(function: str, /, **arguments: Any) -> Any:
    """Call `module:function(**arguments)` in a new process.

    Args:
        function: what to call; gives something JSON-like.
        arguments: JSON-like.

    Returns:
        What it gave.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments)]
    # Linux counts what the starting process held into the peak of the new one, so whoever calls this must import nothing heavy.
    assert "torch" not in sys.modules, "the peak memory of the new process would be this one's"
    # One heap: with several, what one of torch's threads has freed is not there for another, and the peak is left to chance.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def best_of(rounds: int, calls: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Call several functions one after the other, so many times, and keep the least of each value.

    Args:
        rounds: how many times; what else the machine does comes and goes between them.
        calls: variant -> function and arguments; each gives a dict of numbers.
    """
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for variant, (function, arguments) in calls.items():
            run = isolated(function, **arguments)
            known = found.setdefault(variant, run)
            found[variant] = {name: min(value, run[name]) for name, value in known.items()}
    return found


def main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
