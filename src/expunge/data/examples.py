"""Turn rows into examples: all answers of all rows; all faulty rows are reported together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from expunge.core.errors import Fault, UserError
from expunge.data.encoded import Encoded
from expunge.data.rows import Row, RowSet, first_faults
from expunge.data.template import Shot, Template

log = logging.getLogger(__name__)
Job = TypeVar("Job")


def encode_answers(
    rows: RowSet,
    template: Template,
    question_key: str = "question",
    answer_key: str = "answer",
    *,
    few_shot: Sequence[Shot] = (),
    max_length: int | None = None,
    switches: Mapping[str, Any] | None = None,
) -> list[Encoded]:
    """Encode every answer of every row, for evaluation.

    Examples are in row order, then answer order; see their `row` and `answer_index`. An answer is a text or a
    list of texts.

    Raises:
        UserError: rows lack a key, or answers are not text or are cut away; reports all such rows together.
    """
    jobs = [
        (row, number, answer) for row in rows for number, answer in enumerate(answers_of(row, answer_key))
    ]

    def one(job: tuple[Row, int, str]) -> Encoded:
        row, number, answer = job
        return template.encode(
            question(row, question_key),
            answer,
            few_shot,
            max_length=max_length,
            row_id=row.id,
            row=row.index,
            answer_index=number,
            **(switches or {}),
        )

    return _gathered(one, jobs)


def encode_rows(
    rows: RowSet,
    template: Template,
    question_key: str,
    answers: Sequence[Any],
    *,
    few_shot: Sequence[Shot] = (),
    max_length: int | None = None,
    switches: Mapping[str, Any] | None = None,
) -> list[Encoded]:
    """Encode one example per row, with the given answers, for training.

    Raises:
        UserError: as `encode_answers`; or an answer is not text.
    """

    def one(job: tuple[Row, Any]) -> Encoded:
        row, answer = job
        if not isinstance(answer, str):
            raise UserError(
                f"row {row.index} ({row.id}): the answer is {type(answer).__name__}, not text",
                "training needs exactly one answer (a text) per row",
            )
        asked = question(row, question_key)
        return template.encode(
            asked, answer, few_shot, max_length=max_length, row_id=row.id, row=row.index, **(switches or {})
        )

    encoded = _gathered(one, list(zip(rows, answers, strict=True)))
    cut = sum(example.turn_end is None for example in encoded) if template.closing.ends else 0
    if cut:
        log.warning(
            "%s: max_length=%s cuts the end of %d of %d answers", rows.name, max_length, cut, len(encoded)
        )
    return encoded


def question(row: Row, key: str) -> str:
    """The row's question; a `UserError` if it is missing or is not text."""
    asked = row.fields.get(key)
    if not isinstance(asked, str):
        raise UserError(
            f"row {row.index} ({row.id}) has no text under {key!r}; it has: {', '.join(sorted(row.fields))}",
            "correct question_key",
        )
    return asked


def answers_of(row: Row, key: str) -> list[str]:
    """The row's answers as a list, also if the row has only one; a `UserError` if one is not text."""
    value = row.fields.get(key)
    found: list[Any] = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(answer, str) for answer in found):
        raise UserError(
            f"row {row.index} ({row.id}) has neither text nor a list of texts under {key!r}; "
            f"it has: {', '.join(sorted(row.fields))}",
            "correct answer_key",
        )
    return found


def _gathered(one: Callable[[Job], Encoded], jobs: Sequence[Job]) -> list[Encoded]:
    """All examples, or all faults together."""
    encoded: list[Encoded] = []
    faults: list[Fault] = []
    for job in jobs:
        try:
            encoded.append(one(job))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError.of(first_faults(faults))
    return encoded
