"""First step of AltPO: the model writes alternate answers to the forget questions into a file.

The method (arXiv:2409.13474) then is DPO that prefers the alternates; the handler `qa_alternate` reads the
file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from expunge.core.errors import UserError
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.evaluation.collect.decoding import ends_of, only, pad_id_of
from expunge.models.reference import evaluating

log = logging.getLogger(__name__)

PROMPT = (
    "Here is a question with its answer.\nQuestion: {question}\nAnswer: {answer}\n"
    "Write another answer to the same question: of the same"
    " form and length, believable, but with different facts. Write the answer alone."
)
"""The prompt for the model, in our wording: the authors' prompt is not part of the method's definition."""


def sample_alternates(
    model: nn.Module,
    template: Template,
    rows: RowSet,
    *,
    count: int = 5,
    temperature: float = 1.0,
    max_new_tokens: int = 200,
    prompt: str = PROMPT,
    question_key: str = "question",
    answer_key: str = "answer",
    batch_size: int = 16,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Ask the model for alternate answers.

    Args:
        model: the model before unlearning.
        template: template of the model, with its tokenizer.
        rows: the rows to forget.
        count: answers per row. Empty, repeated and true answers are dropped.
        temperature: temperature of sampling from the whole distribution.
        max_new_tokens: most tokens of an answer.
        prompt: the prompt, with `{question}` and, to show the true answer, `{answer}`.
        question_key: key of the question in a row.
        answer_key: key of the answer, a text.
        batch_size: rows per batch.
        seed: seed of the draws; the same rows, settings and seed give the same answers.

    Returns:
        Per row: `id`, `question` and `alternate` (a list of texts); `qa_alternate` draws one of them by
        (seed, row id).

    Raises:
        UserError: the model writes only empty or true answers for some rows; reports all of them together.
    """
    check_settings(count=count, temperature=temperature, max_new_tokens=max_new_tokens)
    asked = [_asked(row, template, prompt, question_key, answer_key) for row in rows]

    def texts_of(chosen: slice) -> list[str]:
        return _sampled(
            model, template, asked[chosen], count, temperature, max_new_tokens, _seed(seed, chosen.start)
        )

    return entries(rows, texts_of, count, batch_size, question_key, answer_key)


def check_settings(strength: float = 0.0, **positive: float) -> None:
    """Refuse settings that are not above 0, or a strength that is negative or not finite."""
    given, needed = dict(positive), f"{', '.join(positive)} must be above 0"
    if strength:
        given["strength"], needed = strength, f"{needed}; strength must be finite and at least 0"
    if not all(value > 0 for value in positive.values()) or not 0 <= strength < float("inf"):
        named = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"alternates cannot be sampled with {named}", needed)


def entries(
    rows: RowSet,
    texts_of: Callable[[slice], Sequence[str]],
    count: int,
    batch_size: int,
    question_key: str,
    answer_key: str,
) -> list[dict[str, Any]]:
    """Write texts batch by batch and make the entries of the file; drops empty, repeated and true answers.

    `texts_of` writes `count` texts for each row of a slice, in row order.

    Returns:
        Per row: `id`, `question` and `alternate` (a list of texts).

    Raises:
        UserError: some rows have no text left; reports all of them together.
    """
    members = list(rows)
    found: list[dict[str, Any]] = []
    for start in range(0, len(members), batch_size):
        chosen = slice(start, start + batch_size)
        texts = texts_of(chosen)
        for number, row in enumerate(members[chosen]):
            true = str(row.fields[answer_key]).strip()
            own = dict.fromkeys(text.strip() for text in texts[number * count : (number + 1) * count])
            others = [text for text in own if text and text.casefold() != true.casefold()]
            found.append({"id": row.id, "question": str(row.fields[question_key]), "alternate": others})
        log.info("alternates: %d of %d rows", min(start + batch_size, len(members)), len(members))
    silent = [entry["id"] for entry in found if not entry["alternate"]]
    if silent:
        raise UserError(
            f"the model writes no other answer to {len(silent)} of {len(found)} questions, "
            f"the first is that of row {silent[0]}",
            "increase the count or the temperature, or change the prompt",
        )
    return found


def check_texts(row: Row, question_key: str, answer_key: str) -> None:
    """Refuse a row whose question or answer is not text."""
    missing = [key for key in (question_key, answer_key) if not isinstance(row.fields.get(key), str)]
    if missing:
        raise UserError(
            f"row {row.index} ({row.id}) has no text under {missing[0]!r}",
            f"its keys are: {', '.join(row.fields)}",
        )


def _asked(row: Row, template: Template, prompt: str, question_key: str, answer_key: str) -> Encoded:
    check_texts(row, question_key, answer_key)
    text = prompt.replace("{question}", row.fields[question_key]).replace("{answer}", row.fields[answer_key])
    return template.encode(text, "", row_id=row.id, row=row.index)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def _sampled(
    model: Any,
    template: Template,
    asked: Sequence[Encoded],
    count: int,
    temperature: float,
    new_tokens: int,
    seed: int,
) -> list[str]:
    """`count` continuations of each prompt, in prompt order; does not change the global random state."""
    tokenizer: Any = template.tokenizer
    pad_id = pad_id_of(tokenizer)
    sampling = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "num_return_sequences": count,
        "max_new_tokens": new_tokens,
        "eos_token_id": ends_of(model, tokenizer, asked) or None,
        "pad_token_id": pad_id,
    }
    where = next(model.parameters()).device
    side = collate([item.prompt_only() for item in asked], pad_id, side="left")
    devices = [where] if where.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(),
        evaluating(model),
        only(model, **sampling),
    ):
        torch.manual_seed(seed)
        written = model.generate(
            input_ids=side["input_ids"].to(where), attention_mask=side["attention_mask"].to(where)
        )
    texts: list[str] = tokenizer.batch_decode(
        written[:, side["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return texts
