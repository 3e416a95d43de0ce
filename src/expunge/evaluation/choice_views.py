"""Views of multiple choice: a question with lettered answers."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.data.examples import question
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids, special_prefix
from expunge.evaluation.text_views import text_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
LETTERS = string.ascii_uppercase


def choices(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    intro: str = "",
    question_key: str = "question",
    choices_key: str = "choices",
    answer_key: str = "answer",
) -> list[Encoded]:
    """Multiple choice: one example per letter, after the question with its lettered answers.

    The text is that of lm-evaluation-harness for MMLU and WMDP, zero-shot: `intro`, the question, one line
    per answer (`A. ...`), `Answer:`. A blank precedes the letter. No chat template is used.

    Args:
        rows: records with a question, a list of answers, and the right one: a number from 0, or a letter.
        template: of the model; only its tokenizer is used.
        max_length: maximum number of tokens. A longer question loses its beginning after the BOS, and a
            warning is logged.
        intro: text before the question; `{key}` stands for that key of the row, underscores become blanks.
        question_key: key of the question.
        choices_key: key of the answers.
        answer_key: key of the right one.

    Returns:
        Examples by row and letter; labels are the letter's tokens, `target_text` is the right letter.
    """
    encoded: list[Encoded] = []
    prefix, cut = special_prefix(template.tokenizer), 0
    for number, row in enumerate(rows):
        options, right = _options(row, choices_key, answer_key)
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        text = "\n".join([_intro(intro, row) + question(row, question_key).strip(), *lines, "Answer:"])
        context, endings = _continued(
            template.tokenizer, text, [f" {letter}" for letter in LETTERS[: len(options)]]
        )
        # Cut the same number of tokens for every letter, so that all follow the same text.
        longest = len(prefix) + len(context) + max(map(len, endings))
        excess = max(0, longest - max_length) if max_length is not None else 0
        cut += excess > 0
        context = [*prefix, *context[excess:]]
        for place, ending in enumerate(endings):
            mask = (False,) * len(context) + (True,) * len(ending)
            encoded.append(
                Encoded((*context, *ending), mask, None, len(context), row.id, number, place, LETTERS[right])
            )
    if cut:
        text = "%s: %d of %d questions have more than %s tokens; their beginnings are left out"
        log.warning(text, rows.name, cut, len(rows), max_length)
    return encoded


def _intro(intro: str, row: Row) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: text_at(row, match[1]).replace("_", " "), intro)


def _options(row: Row, choices_key: str, answer_key: str) -> tuple[Sequence[str], int]:
    """The answers and the position of the right one."""
    options, answer = row.fields.get(choices_key), row.fields.get(answer_key)
    # CSV files give numbers as text.
    if isinstance(answer, str):
        letter = answer.strip().upper()
        number = int(answer) if answer.isdigit() else None
        answer = LETTERS.index(letter) if letter in [*LETTERS] else number
    where = f"row {row.index} ({row.id})"
    if (
        not isinstance(options, list)
        or not 2 <= len(options) <= len(LETTERS)
        or not all(isinstance(option, str) for option in options)
    ):
        raise UserError(
            f"{where} has no list of 2 to {len(LETTERS)} texts under {choices_key!r}",
            "correct choices_key, or correct the row",
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        given = row.fields.get(answer_key)
        raise UserError(
            f"{where}: {answer_key}={given!r} is not one of its {len(options)} answers",
            "give a number from 0, or a letter",
        )
    return options, answer


def _continued(
    tokenizer: PreTrainedTokenizerBase, text: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """(tokens of the text, tokens of each ending); no BOS."""
    context = plain_ids(tokenizer, text)
    found = []
    for ending in endings:
        whole = plain_ids(tokenizer, text + ending)
        # If a token spans the border, encode the ending alone: the model reads the text before it answers.
        together = whole[: len(context)] == context
        found.append(whole[len(context) :] if together else plain_ids(tokenizer, ending))
    return context, found
