"""Random labels: questions whose alternate answers are answers to other questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.errors import Fault, UserError
from expunge.data.alternate_answers import drawn
from expunge.data.datasets import Context, Dataset, with_alternates
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
    """Questions with their answers, and with the answer of a random row of other data sets as the alternate.

    Args:
        context: name, template, data root, seed, switches.
        hf_args: where the rows are, see `load_rows`.
        answers: data sets that the alternates are drawn from, `{NAME: {args: {hf_args, answer_key, select,
            reshape}}}`, usually `data.retain`. The draw depends on (seed, row id) alone.
        question_key: key of the user turn.
        answer_key: key of the assistant turn.
        max_length: tokens at most.
        select: which rows, see `select_rows`.
        reshape: see `chosen_rows`.

    Raises:
        UserError: a data set to draw from that is no questions and answers, or whatever is wrong with the
            rows.
    """
    rows = chosen_rows(hf_args, context.data_root, (question_key, answer_key), select, reshape)
    texts = [
        text for name, spec in answers.items() for text in _answers(context, name, spec.get("args") or {})
    ]
    if not texts:
        raise UserError(
            f"data set {context.name!r} draws its alternates from nothing",
            "give answers, usually ${data.retain}",
        )
    return with_alternates(
        context,
        rows,
        question_key,
        answer_key,
        (),
        max_length,
        [drawn(texts, context.seed, row) for row in rows],
        True,
    )


def _answers(context: Context, name: str, args: Mapping[str, Any]) -> list[str]:
    if "hf_args" not in args or "text_key" in args:
        raise UserError.of(
            [
                Fault(
                    f"data set {name!r} has no answers to draw from",
                    "random labels need questions and answers to retain",
                )
            ]
        )
    key = str(args.get("answer_key", "answer"))
    rows = chosen_rows(args["hf_args"], context.data_root, (key,), args.get("select"), args.get("reshape"))
    return [text for row in rows for text in answers_of(row, key)]
