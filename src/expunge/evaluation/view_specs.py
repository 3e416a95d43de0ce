"""What a suite's configuration says of its views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.config.short_names import VIEWS
from expunge.core.binding import Bound
from expunge.core.handlers import load_handler
from expunge.core.ranges import Count
from expunge.data.encoded import Encoded

ANSWERS = "answers"
"""The kind of a view that names none: questions with their answers, as the model's template puts them."""


@dataclass(frozen=True)
class ViewSpec:
    """What a suite says of a view.

    Attributes:
        hf_args: where the rows are, as for a dataset; a `name` or `path` of null means that there is no such
            view.
        question_key: key of the question.
        answer_key: key of the answer or answers.
        text_key: the rows are plain text under this key, without question and answer; they are joined and cut
            at `max_length`.
        max_length: tokens at most.
        kind: how examples are made from the rows: `answers`, another of `short_names.VIEWS`, or
            `module:function`.
        options: keyword arguments of the function `build`; every kind except `answers` has these instead of
            the three keys.
        local: files under the data root. The first one that exists is read instead of `hf_args`.
        optional: if its rows are not found, the view is left out, and metrics that read it are null with the
            reason.
        select: `{ratio, seed, complement}`: which of the rows, see `data.select`.
        reshape: how rows are changed before use, see `data.select.RESHAPES`.
    """

    hf_args: Mapping[str, Any]
    question_key: str = "question"
    answer_key: str = "answer"
    text_key: str | None = None
    max_length: Count | None = None
    kind: str = ANSWERS
    options: Mapping[str, Any] = field(default_factory=dict)
    local: Sequence[str] | None = None
    optional: bool = False
    select: Mapping[str, Any] | None = None
    reshape: str | None = None

    @property
    def build(self) -> Callable[..., list[Encoded]]:
        """The function that makes examples: rows, template, tokens of an example at most, options -> examples, row after row."""
        made: Callable[..., list[Encoded]] = load_handler(VIEWS.get(self.kind, self.kind))
        return made

    @property
    def absent(self) -> str | None:
        """Why there is no such view, None where there is one."""
        empty = [
            key
            for key in ("path", "name")
            if key in self.hf_args and self.hf_args[key] is None and not self.local
        ]
        return f"its hf_args.{empty[0]} is null" if empty else None


def spec_of(view: Bound) -> ViewSpec:
    """A view as it was bound: the keys of every kind, and its own ones."""
    own = view.kwargs if view.options["kind"] == ANSWERS else {"options": view.kwargs}
    return ViewSpec(**view.options, **own)
