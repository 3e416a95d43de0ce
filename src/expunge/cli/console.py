"""Terminal output: log lines, faults, tables. Only this file uses rich."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence

from expunge.core.errors import UserError


def setup_logging(verbose: bool = False) -> None:
    """Send the log to stderr: INFO of the first process, WARNING of the others.

    Args:
        verbose: DEBUG instead of INFO; on a terminal also the source line of each message.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    level = logging.DEBUG if verbose else logging.INFO
    handler = _handler(verbose)
    logger = logging.getLogger("expunge")
    logger.handlers[:] = [handler]
    logger.setLevel(level if first else logging.WARNING)
    # Records still reach the root logger and its listeners. The root logger gets an idle handler, because a
    # library adds one to a root logger without handlers, and each line would then be printed twice.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)
    warnings_log = logging.getLogger("py.warnings")
    warnings_log.handlers[:] = [handler]
    warnings_log.setLevel(logging.WARNING if first else logging.ERROR)


def _handler(verbose: bool) -> logging.Handler:
    """Colours on a terminal; elsewhere one plain line per record, because rich wraps lines at 80 columns."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(console=Console(stderr=True), show_path=verbose, log_time_format="[%X]")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return handler


def print_faults(error: UserError) -> None:
    """Print to stderr what is wrong and what to do, without a traceback; only one process of a run prints."""
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        return
    count = len(error.faults)
    if count > 1:
        print(f"error: {count} things are wrong", file=sys.stderr)
    for fault in error.faults:
        print(f"{'error: ' if count == 1 else '- '}{fault}", file=sys.stderr)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns, as wide as their content; nothing is cut."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
