"""Builders of views: what a view can make of its rows beside questions with answers.

A builder is a function of rows, template and the tokens an example may have; its keyword-only parameters are
the view's options.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.data.encoded import Encoded
from expunge.data.rows import RowSet
from expunge.data.template import Template
from expunge.evaluation.choice_views import choices
from expunge.evaluation.text_views import documents, passages, prompts


def harness_task(
    rows: RowSet, template: Template, max_length: int | None, *, task: str, include_path: str | None = None
) -> list[Encoded]:
    """No examples: lm-eval makes its own from the task's documents.

    Args:
        rows: empty.
        template: not used.
        max_length: not used.
        task: its name in the harness.
        include_path: folder with tasks of the user's own.
    """
    return []


def harness_version() -> str | None:
    """Version of lm-eval, None where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def _named_by_task(options: Mapping[str, Any]) -> RowSet:
    return RowSet.of(str(options["task"]), (), "lm-eval")


@dataclass(frozen=True)
class Builder:
    """How a view of one kind makes its examples.

    Attributes:
        build: rows, template, tokens an example may have, options -> examples, row after row.
        own_rows: options -> the rows of a view that reads no file; None = `hf_args` say where they are.
        version: of whatever else the examples depend on.
    """

    build: Callable[..., list[Encoded]]
    own_rows: Callable[[Mapping[str, Any]], RowSet] | None = None
    version: Callable[[], str | None] | None = None

    def options(self) -> dict[str, bool]:
        """The view's options, by name, and whether a view must give them."""
        parameters = inspect.signature(self.build).parameters.values()
        return {
            item.name: item.default is item.empty for item in parameters if item.kind is item.KEYWORD_ONLY
        }


BUILDERS: Mapping[str, Builder] = {
    "documents": Builder(documents),
    "passages": Builder(passages),
    "prompts": Builder(prompts),
    "choices": Builder(choices),
    "harness": Builder(harness_task, _named_by_task, harness_version),
}
