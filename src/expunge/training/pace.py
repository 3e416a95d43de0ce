"""The cost of a training so far: seconds, tokens per second, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor


def peak_memory_mb() -> float:
    """Peak memory of this process in MiB: of the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class Pace:
    """Counts tokens and time between records.

    Attributes:
        tokens: tokens of this rank's counted rows since the last record.
        paused: seconds since the last record that were not training, such as saving.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start counting, at the first step of this process."""
        self.tokens, self.paused = 0, 0.0
        self._begun = self._clock = time.monotonic()

    def since_last(self, all_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Seconds of the run, tokens per second of all ranks since the last call, and peak memory."""
        now = time.monotonic()
        tokens = int(all_sum(torch.tensor(self.tokens)).item())
        rate = round(tokens / max(now - self._clock - self.paused, 1e-9), 1)
        self.tokens, self._clock, self.paused = 0, now, 0.0
        cost = self.cost()
        return {"seconds": cost.pop("seconds"), "tokens_per_second": rate, **cost}

    def cost(self) -> dict[str, float]:
        """Seconds since the first step of this process, and peak memory in MiB."""
        return {"seconds": round(time.monotonic() - self._begun, 3), "peak_memory_mb": peak_memory_mb()}
