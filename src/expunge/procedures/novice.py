"""First step of ELM: the model writes answers that change the subject, steered away from an expert's text.

The method (arXiv:2410.02760) trains on these answers in its fluency term, `methods.elm.elm_fluency`; the
handler `qa_alternate` reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.data.collate import collate
from expunge.data.encoded import Encoded, encode_ids
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids
from expunge.evaluation.collect.decoding import ends_of, only, pad_id_of
from expunge.lm.runtime import generator
from expunge.methods.elm import EXPERT, NOVICE, beginnings, shifted
from expunge.models.reference import evaluating
from expunge.procedures.sampled_alternates import check_settings, check_texts, entries

LEADS = (
    "I would rather talk about something else:",
    "That I cannot say, but here is another subject:",
    "I know nothing of this. Let me tell you of something pleasant:",
    "Leaving this question aside, here is a lighter one:",
)
"""Sentences that change the subject; the answers begin with them. They are our own wording."""


def novice_alternates(
    model: nn.Module,
    template: Template,
    rows: RowSet,
    *,
    concept: str,
    strength: float = 3.0,
    leads: Sequence[str] = LEADS,
    expert_prompt: str = EXPERT,
    novice_prompt: str = NOVICE,
    count: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 200,
    question_key: str = "question",
    answer_key: str = "answer",
    batch_size: int = 16,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Let the model answer the forget questions as a novice who knows nothing about a concept.

    An answer is a sentence that changes the subject, followed by text of the model. Each token is drawn from
    softmax((log p(. | x) + strength (log p(. | novice, x) - log p(. | expert, x))) / temperature), where x is
    all text before the token.

    The `leads` are the sentences, used in turn; with an empty one the model writes the whole answer. The two
    prompts contain `{concept}`. The draws depend on (seed, row id); `batch_size` affects the answers only
    through rounding. The other settings are those of `sample_alternates`.

    Source:
    https://github.com/rohitgandikota/erasing-llm/blob/2e3c6c7bbb52b7cfcb3f32ece1f020cb1864ded6/trainscripts/prepare_consistency_data.py,
    with strength 3. Deviations: our expert and novice prompts stand before the whole text, as in the erase
    term; theirs stand only before the tokens written so far, without the text and the sentence. x is a
    question, not the first 50 to 300 letters of a text. The wording of the sentences and prompts is ours,
    there is one prompt of each kind, and `max_new_tokens` is not drawn from 100 to 300.

    Returns:
        Per row: `id`, `question`, `alternate` (a list of texts), and `made_with` (the settings).

    Raises:
        UserError: a setting is invalid, or the model writes nothing for some rows.
    """
    check_settings(count=count, temperature=temperature, max_new_tokens=max_new_tokens, strength=strength)
    tokenizer: Any = template.tokenizer
    prefixes = beginnings(tokenizer, concept, expert_prompt, novice_prompt)
    members, leads = list(rows), tuple(leads) or ("",)
    for row in members:
        check_texts(row, question_key, answer_key)
    asked = [template.encode(row.fields[question_key], "", row_id=row.id, row=row.index) for row in members]
    ends = ends_of(model, tokenizer, asked)

    def texts_of(chosen: slice) -> list[str]:
        begun = [
            _Begun(row, asked[number], answer, leads[(number + answer) % len(leads)])
            for number, row in list(enumerate(members))[chosen]
            for answer in range(count)
        ]
        how = {"strength": strength, "temperature": temperature, "ends": ends}
        draws = [_draws(max_new_tokens, seed, item.row.id, item.answer) for item in begun]
        return _answers(model, template, begun, question_key, prefixes, torch.stack(draws), **how)

    made_with = {
        "novice_of": concept,
        "strength": strength,
        "leads": list(leads),
        "expert_prompt": expert_prompt,
        "novice_prompt": novice_prompt,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    found = entries(rows, texts_of, count, batch_size, question_key, answer_key)
    return [{**entry, "made_with": made_with} for entry in found]


class _Begun(NamedTuple):
    """An answer to write: its row, the encoded question, its number, and its first sentence."""

    row: Row
    asked: Encoded
    answer: int
    lead: str


def _draws(count: int, *parts: int | str) -> Tensor:
    return torch.rand(count, generator=generator(parts[0], "novice", *parts[1:]), dtype=torch.float64)


def _answers(
    model: Any,
    template: Template,
    begun: Sequence[_Begun],
    question_key: str,
    prefixes: Mapping[str, Sequence[int]],
    draws_BN: Tensor,
    **how: Any,
) -> list[str]:
    """The answers, each with its first sentence."""
    tokenizer: Any = template.tokenizer
    starts = [
        (*item.asked.prompt_ids, *_lead_ids(template, item.row.fields[question_key], item.lead))
        for item in begun
    ]
    behind = [[_behind(start, ids, tokenizer.bos_token_id) for start in starts] for ids in prefixes.values()]
    written = steered(model, [starts, *behind], draws_BN, **how, pad_id=pad_id_of(tokenizer))
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [
        " ".join(part for part in (item.lead.strip(), text.strip()) if part)
        for item, text in zip(begun, texts, strict=True)
    ]


def steered(
    model: Any,
    streams: Sequence[Sequence[Sequence[int]]],
    draws_BN: Tensor,
    *,
    strength: float,
    temperature: float,
    ends: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """Continue each text, with a distribution shifted from an expert prompt to a novice prompt.

    All three streams of all texts form one batch with one cache. The three streams of a text get the same
    new token at each step.

    Args:
        model: the model, in any mode; it runs in eval mode.
        streams: tokens of B texts: as they are, after the expert prompt, and after the novice prompt.
        draws_BN: [B, N] uniform draws on [0, 1); the n-th token of a text is the token at this value of the
            cumulative distribution. N is the most tokens to write.
        strength: size of the shift.
        temperature: temperature of sampling.
        ends: the tokens that end a text; the results are without them.
        pad_id: the token that fills short rows.
    """
    from transformers import LogitsProcessorList

    count = len(streams[0])
    side = collate([encode_ids(ids, row_id="") for stream in streams for ids in stream], pad_id, side="left")
    where = next(model.parameters()).device
    exact = torch.float32 if where.type == "mps" else torch.float64
    settings = {
        "do_sample": False,
        "max_new_tokens": draws_BN.shape[1],
        "eos_token_id": list(ends) or None,
        "pad_token_id": pad_id,
    }
    with torch.inference_mode(), evaluating(model), only(model, **settings):
        ids_BT = model.generate(
            input_ids=side["input_ids"].to(where),
            attention_mask=side["attention_mask"].to(where),
            logits_processor=LogitsProcessorList(
                [_Steering(draws_BN.to(where, exact), strength, temperature)]
            ),
        )
    written = ids_BT[:count, side["input_ids"].shape[1] :].tolist()
    return [
        row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in written
    ]


class _Steering:
    """Draws the next token of each text and makes it the most likely one in all three greedy streams."""

    def __init__(self, draws_BN: Tensor, strength: float, temperature: float) -> None:
        self.draws_BN, self.strength, self.temperature, self.written = draws_BN, strength, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ref_BV, expert_BV, novice_BV = scores.chunk(3)
        shifted_BV = shifted(ref_BV, expert_BV, novice_BV, self.strength)
        cumulated_BV = (shifted_BV.to(self.draws_BN.dtype) / self.temperature).softmax(-1).cumsum(-1)
        place_B1 = self.draws_BN[:, self.written : self.written + 1] * cumulated_BV[:, -1:]
        token_B1 = torch.searchsorted(cumulated_BV, place_B1, right=True).clamp(max=scores.shape[-1] - 1)
        self.written += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, token_B1.repeat(3, 1), 0.0)


def _lead_ids(template: Template, question: str, lead: str) -> list[int]:
    """The tokens of an unfinished answer, without the end of its turn."""
    return (
        plain_ids(template.tokenizer, template.body(template.prompt(question), question, lead))
        if lead
        else []
    )


def _behind(ids: Sequence[int], prefix: Sequence[int], bos: int | None) -> tuple[int, ...]:
    """A text after a prefix; the prefix stands after a BOS. The same as `methods.elm.prefixed`."""
    at = int(bos is not None and ids[0] == bos)
    return (*ids[:at], *prefix, *ids[at:])
