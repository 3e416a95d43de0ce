"""Random labels: questions whose alternate answers are answers to other questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.errors import UserError
from expunge.data.alternate_answers import drawn
from expunge.data.datasets import Context, Dataset, Questions
from expunge.data.examples import answers_of
from expunge.data.select import chosen_rows


def qa_random_labels(
    context: Context,
    *,
    hf_args: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Any]],
    question_key: str = "question",
    answer_key: str = "answer",
    max_length: int | None = 512,
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> Dataset:
    """Questions with their answers; the alternate is the answer of a random row of other data sets.

    The arguments are those of `qa`, and `answers`: the data sets to draw the alternates from, `{NAME: {args:
    {hf_args, answer_key, select, reshape}}}`, usually `data.retain`. The draw depends only on (seed, row id).

    Raises:
        UserError: a data set to draw from has no questions and answers, or the rows have a fault.
    """
    rows = chosen_rows(hf_args, context.data_root, (question_key, answer_key), select, reshape)
    texts = [
        text for name, spec in answers.items() for text in _answers(context, name, spec.get("args") or {})
    ]
    if not texts:
        raise UserError(
            f"data set {context.name!r} has no answers to draw its alternates from",
            "set answers, usually to ${data.retain}",
        )
    asked = Questions(context, rows, question_key, answer_key, max_length)
    return asked.with_others([drawn(texts, context.seed, row) for row in rows], True)


def _answers(context: Context, name: str, args: Mapping[str, Any]) -> list[str]:
    if "hf_args" not in args or "text_key" in args:
        raise UserError(
            f"data set {name!r} has no answers to draw from",
            "random labels need a retain data set of questions and answers, not of plain text",
        )
    key = str(args.get("answer_key", "answer"))
    rows = chosen_rows(args["hf_args"], context.data_root, (key,), args.get("select"), args.get("reshape"))
    return [text for row in rows for text in answers_of(row, key)]
