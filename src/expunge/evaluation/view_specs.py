"""The entry of a view in a suite."""

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
"""The default kind of a view: questions with their answers, in the model's template."""


@dataclass(frozen=True)
class ViewSpec:
    """The entry of a view. Validation reads the types of the keys from here.

    Attributes:
        hf_args: source of the rows, as for a dataset; if its `name` or `path` is null, there is no view.
        question_key: key of the question.
        answer_key: key of the answer or answers.
        text_key: the rows are plain text under this key, without question and answer; the texts are joined
            and cut into pieces of `max_length`.
        max_length: maximum number of tokens.
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
        """The function that makes examples from rows, template, maximum number of tokens, and options."""
        made: Callable[..., list[Encoded]] = load_handler(VIEWS.get(self.kind, self.kind))
        return made

    @property
    def absent(self) -> str | None:
        """Why there is no such view; None if there is one."""
        args = {} if self.local else self.hf_args
        empty = [key for key in ("path", "name") if key in args and args[key] is None]
        return f"its hf_args.{empty[0]} is null" if empty else None


def spec_of(view: Bound) -> ViewSpec:
    """The entry of a view from what was bound: the keys of every kind, and those of its own kind."""
    own = view.kwargs if view.options["kind"] == ANSWERS else {"options": view.kwargs}
    return ViewSpec(**view.options, **own)
