"""What a suite's configuration says of its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.core.errors import Fault, UserError, unknown
from expunge.evaluation.builders import BUILDERS

ANSWERS = "answers"
"""The kind of a view that names none: questions with their answers, as the model's template puts them."""

ANSWER_KEYS = ("question_key", "answer_key", "text_key")
COMMON_KEYS = ("kind", "hf_args", "local", "optional", "max_length", "select", "reshape")


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
        kind: what is made of the rows: `answers`, or one of `builders.BUILDERS`.
        options: of the builder; every kind but `answers` has these instead of the three keys.
        local: files under the data root that are looked for first, in this order.
        optional: without its rows there is no such view, and what reads it is null with the reason.
        select: `{ratio, seed, complement}`: which of the rows, see `data.select`.
        reshape: what the rows are made of, see `data.select.RESHAPES`.
    """

    hf_args: Mapping[str, Any]
    question_key: str = "question"
    answer_key: str = "answer"
    text_key: str | None = None
    max_length: int | None = None
    kind: str = ANSWERS
    options: Mapping[str, Any] = field(default_factory=dict)
    local: Sequence[str] = ()
    optional: bool = False
    select: Mapping[str, Any] | None = None
    reshape: str | None = None

    @property
    def absent(self) -> str | None:
        """Why there is no such view, None where there is one."""
        empty = [
            key
            for key in ("path", "name")
            if key in self.hf_args and self.hf_args[key] is None and not self.local
        ]
        return f"its hf_args.{empty[0]} is null" if empty else None


def parse_views(views: Mapping[str, Any]) -> dict[str, ViewSpec]:
    """The views of a suite's configuration.

    Raises:
        UserError: unknown keys or kinds, a view without `hf_args` or a required option; all together.
    """
    specs: dict[str, ViewSpec] = {}
    faults: list[Fault] = []
    for name, node in views.items():
        try:
            specs[name] = _spec(name, node)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError.of(faults)
    return specs


def _spec(name: str, node: Any) -> ViewSpec:
    kind = node.get("kind", ANSWERS) if isinstance(node, Mapping) else ANSWERS
    if kind != ANSWERS and kind not in BUILDERS:
        raise UserError.of([unknown(f"kind of the view {name!r}", str(kind), [ANSWERS, *BUILDERS])])
    reads_rows = kind == ANSWERS or BUILDERS[kind].own_rows is None
    if not isinstance(node, Mapping) or (reads_rows and not isinstance(node.get("hf_args"), Mapping)):
        raise UserError(
            f"the view {name!r} has no hf_args", "say where its rows are: hf_args: {path, name, split}"
        )
    own = dict.fromkeys(ANSWER_KEYS, False) if kind == ANSWERS else BUILDERS[kind].options()
    known = [*COMMON_KEYS, *own]
    faults = [unknown(f"key of the view {name!r}", str(key), known) for key in node if key not in known]
    # A key that is misspelt is not missing as well.
    missing = [key for key, required in own.items() if required and node.get(key) is None and not faults]
    hint = f"views of the kind {kind} need it"
    faults += [Fault(f"the view {name!r} has no {key}", hint) for key in missing]
    if faults:
        raise UserError.of(faults)
    given = {str(key): value for key, value in node.items()}
    if kind == ANSWERS:
        return ViewSpec(**given)
    common = {key: value for key, value in given.items() if key in COMMON_KEYS}
    return ViewSpec(
        **{"hf_args": {}, **common}, options={key: given[key] for key in given if key not in COMMON_KEYS}
    )
