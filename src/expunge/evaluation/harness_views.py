"""Views of tasks of lm-evaluation-harness, which makes its own examples."""

from __future__ import annotations

import importlib.metadata

from expunge.data.rows import RowSet

HARNESS = "harness"
"""The kind of these views."""


def harness_rows(*, task: str, include_path: str | None = None) -> RowSet:
    """No rows, under the name of the task: lm-eval reads the documents of the task itself.

    Args:
        task: its name in the harness.
        include_path: folder with the user's own tasks; the collector reads it.
    """
    return RowSet.of(task, (), "lm-eval")


def harness_version() -> str | None:
    """Version of lm-eval, None where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None
