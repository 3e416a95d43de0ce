"""What a training has taken so far: seconds, tokens a second, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor


def peak_memory_mb() -> float:
    """Highest memory of this process so far in MiB: the accelerator's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


class Pace:
    """Counts tokens and time between records.

    Attributes:
        tokens: of this rank's rows that counted, since the last record.
        paused: seconds since the last record that were not training, such as saving.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start counting, at the first step or where a run resumes."""
        self.tokens, self.paused = 0, 0.0
        self._begun = self._clock = time.monotonic()

    def since_last(self, all_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Seconds of the run, tokens a second of all ranks since the last record, peak memory; counts from here on again."""
        now = time.monotonic()
        tokens = int(all_sum(torch.tensor(self.tokens)).item())
        training = max(now - self._clock - self.paused, 1e-9)
        self.tokens, self._clock, self.paused = 0, now, 0.0
        cost = self.cost()
        return {
            "seconds": cost["seconds"],
            "tokens_per_second": round(tokens / training, 1),
            "peak_memory_mb": cost["peak_memory_mb"],
        }

    def cost(self) -> dict[str, float]:
        """Seconds since the first step, or since the run was resumed, and MiB."""
        return {"seconds": round(time.monotonic() - self._begun, 3), "peak_memory_mb": peak_memory_mb()}
