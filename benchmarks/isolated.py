"""A measurement in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any


def isolated(function: str, /, **arguments: Any) -> dict[str, float]:
    """Call `module:function(**arguments)` in a new process.

    Args:
        function: what to call; gives a dict of numbers.
        arguments: JSON-like.

    Returns:
        What it gave.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.isolated", function, json.dumps(arguments)]
    # One heap: with several, what one of torch's threads has freed is not there for another, and the peak is left to chance.
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
