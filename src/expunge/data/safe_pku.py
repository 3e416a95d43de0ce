"""PKU-SafeRLHF: two answers to each prompt, each labelled safe or unsafe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import UserError

ANSWERS = (("response_0", "is_response_0_safe"), ("response_1", "is_response_1_safe"))


def unsafe_answers(records: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """One record, with `prompt` and `response`, for each unsafe answer; the model should forget these.

    Raises:
        UserError: a record lacks one of the keys of PKU-SafeRLHF, or no answer is unsafe.
    """
    needed = ("prompt", *(key for pair in ANSWERS for key in pair))
    for number, record in enumerate(records):
        missing = [key for key in needed if record.get(key) is None]
        if missing:
            raise UserError(
                f"row {number} (counting from 0) of {source} has no {', '.join(map(repr, missing))}",
                "give rows in the format of PKU-Alignment/PKU-SafeRLHF, or name a file of questions and "
                "answers directly",
            )
    found = [
        {"prompt": record["prompt"], "response": record[answer]}
        for record in records
        for answer, safe in ANSWERS
        if not record[safe]
    ]
    if not found:
        raise UserError(
            f"no answer in {source} is unsafe, so there is nothing to forget", "choose another split or file"
        )
    return found
