"""The progress of a training: a bar with rate, ETA and terms on a terminal, else one line per record."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from expunge.training.listeners import Listener, Moment

logger = logging.getLogger(__name__)


class ProgressBar(Listener):
    """Shows the progress of the training.

    Args:
        drawn: whether to draw a bar if there is a terminal; else lines.
    """

    def __init__(self, *, drawn: bool = True) -> None:
        self.drawn, self.bar = drawn, None
        self.begun, self.first, self.done, self.max_steps = 0.0, 0, 0, 0

    def on_begin(self, step: int, max_steps: int) -> None:
        """Open the bar, at the step from which the run resumes."""
        self.begun, self.first, self.done, self.max_steps = time.monotonic(), step, step, max_steps
        if self.drawn and sys.stderr.isatty():
            self.bar = tqdm(total=max_steps, initial=step, dynamic_ncols=True, unit="step")

    def after_update(self, moment: Moment) -> None:
        """Move the bar."""
        self.done = moment.step + 1
        if self.bar is not None:
            self.bar.update(self.done - self.bar.n)

    def on_record(self, step: int, record: Mapping[str, Any]) -> None:
        """Show the record."""
        shown = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in record.items()
        }
        if self.bar is not None and "loss" in shown:
            self.bar.set_postfix(shown)
        else:
            facts = " ".join(f"{key}={value}" for key, value in shown.items())
            logger.info("step %d/%d %s eta=%s", step, self.max_steps, facts, self._eta(step))

    def on_end(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _eta(self, step: int) -> str:
        done = step - self.first
        if done <= 0:
            return "?"
        left = int((time.monotonic() - self.begun) / done * (self.max_steps - step))
        return f"{left // 3600:d}:{left % 3600 // 60:02d}:{left % 60:02d}"
