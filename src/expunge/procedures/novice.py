"""ELM's first step: answers that change the subject, written by the model itself, steered away from what an expert would write.

The method (arXiv:2410.02760) learns to write them in its fluency term, `methods.elm.elm_fluency`; the handler
`qa_alternate` reads the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.data.collate import collate
from expunge.data.encoded import encode_ids
from expunge.data.rows import RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids
from expunge.lm.runtime import generator
from expunge.methods.elm import EXPERT, NOVICE, beginnings, shifted
from expunge.models.reference import evaluating
from expunge.procedures.sampled_alternates import check_texts, ends_of, entries, only, pad_id_of

LEADS = (
    "I would rather talk about something else:",
    "That I cannot say, but here is another subject:",
    "I know nothing of this. Let me tell you of something pleasant:",
    "Leaving this question aside, here is a lighter one:",
)
"""Sentences that change the subject, with which the answers begin; our own words."""


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
    """Have the model answer the forget questions as one who knows nothing of a concept would.

    An answer is a sentence that changes the subject and what the model writes behind it, each token drawn
    from softmax((log p(. | x) + strength (log p(. | novice, x) - log p(. | expert, x))) / temperature), x all
    that stands before.

    Source:
    https://github.com/rohitgandikota/erasing-llm/blob/2e3c6c7bbb52b7cfcb3f32ece1f020cb1864ded6/trainscripts/prepare_consistency_data.py,
    whose strength is 3. Deviations: the beginnings stand before the whole text, as they do in the erase term;
    theirs stand before the tokens that were written so far, and neither the text nor the sentence. x is a
    question, not the first 50 to 300 letters of a text. The sentences and the beginnings have our wording, of
    the beginnings there is one each, and `max_new_tokens` is no draw from 100 to 300.

    Args:
        model: the one that is to forget, as it is before.
        template: of the model; holds its tokenizer.
        rows: the rows to forget.
        concept: what is to be forgotten, in words.
        strength: how far the log-probs are shifted from expert to novice.
        leads: the sentences, taken in turn; an empty one leaves the answer to the model from its first token
            on.
        expert_prompt: beginning of an expert's text, with `{concept}` in it.
        novice_prompt: beginning of a novice's text.
        count: answers a row. Fewer are kept where some are empty, repeated, or the true answer.
        temperature: of sampling, from the whole distribution.
        max_new_tokens: of what the model writes.
        question_key: key of the question in a row.
        answer_key: key of the answer, a text.
        batch_size: rows at a time; the answers do not depend on it, but for the rounding of the model's sums.
        seed: of the draws, which are of (seed, row id).

    Returns:
        Per row `id`, `question`, `alternate`, a list of texts, and `made_with`, the settings.

    Raises:
        UserError: settings that cannot be, or rows for which the model writes nothing.
    """
    if count < 1 or max_new_tokens < 1 or not (temperature > 0 and 0 <= strength < float("inf")):
        given = (
            f"count={count}, temperature={temperature}, max_new_tokens={max_new_tokens}, strength={strength}"
        )
        raise UserError(
            f"continuations cannot be sampled with {given}",
            "give whole numbers and a temperature above 0, and no strength below 0",
        )
    tokenizer: Any = template.tokenizer
    prefixes = beginnings(tokenizer, concept, expert_prompt, novice_prompt)
    members = list(rows)
    leads = tuple(leads) or ("",)
    chosen_leads = [
        [leads[(number + answer) % len(leads)] for answer in range(count)] for number in range(len(members))
    ]
    for row in members:
        check_texts(row, question_key, answer_key)
    asked = [template.encode(row.fields[question_key], "", row_id=row.id, row=row.index) for row in members]
    ends = ends_of(model, tokenizer, asked)

    def texts_of(chosen: slice) -> list[str]:
        begun = zip(members[chosen], asked[chosen], chosen_leads[chosen], strict=True)
        starts = [
            (*item.prompt_ids, *_lead_ids(template, row.fields[question_key], lead))
            for row, item, own in begun
            for lead in own
        ]
        streams = [
            starts,
            *(
                [_behind(start, prefixes[name], tokenizer.bos_token_id) for start in starts]
                for name in ("expert", "novice")
            ),
        ]
        draws = [
            torch.rand(
                max_new_tokens, generator=generator(seed, "novice", row.id, answer), dtype=torch.float64
            )
            for row in members[chosen]
            for answer in range(count)
        ]
        written = steered(
            model,
            streams,
            torch.stack(draws),
            strength=strength,
            temperature=temperature,
            ends=ends,
            pad_id=pad_id_of(tokenizer),
        )
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        before = [lead for own in chosen_leads[chosen] for lead in own]
        return [
            " ".join(part for part in (lead.strip(), text.strip()) if part)
            for lead, text in zip(before, texts, strict=True)
        ]

    made_with = {
        "novice_of": concept, "strength": strength, "leads": list(leads), "expert_prompt": expert_prompt, "novice_prompt": novice_prompt,
        "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed,
    }  # fmt: skip
    found = entries(rows, texts_of, count, batch_size, question_key, answer_key)
    return [{**entry, "made_with": made_with} for entry in found]


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
    """What the model writes behind each text, its distribution shifted by what two other beginnings make of it.

    All three streams of all texts are one batch with one cache; the three of a text are given the same token
    each time.

    Args:
        model: in whatever mode; it is read in eval mode.
        streams: the texts' tokens as they are, behind an expert's beginning, and behind a novice's; B of
            each.
        draws_BN: [B, N] from the uniform distribution on [0, 1): the N-th token of a text is the one at this
            place of the cumulated distribution. N is how many tokens are written at most.
        strength: of the shift.
        temperature: of sampling.
        ends: the tokens that end a text.
        pad_id: the token that fills short rows.

    Returns:
        The tokens of each text, without the one that ended it.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    count = len(streams[0])
    side = collate([encode_ids(ids, row_id="") for stream in streams for ids in stream], pad_id, side="left")
    where = next(model.parameters()).device
    exact = torch.float32 if where.type == "mps" else torch.float64
    made: Any = GenerationConfig
    config = made(
        do_sample=False,
        max_new_tokens=draws_BN.shape[1],
        eos_token_id=list(ends) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    with torch.inference_mode(), evaluating(model), only(model, config):
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
    """Draws the next token of each text, and makes it the likeliest one of all three streams, which greedy decoding then takes."""

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
    """The tokens of an answer that is not finished; its turn is left open."""
    return (
        plain_ids(template.tokenizer, template.body(template.prompt(question), question, lead))
        if lead
        else []
    )


def _behind(ids: Sequence[int], prefix: Sequence[int], bos: int | None) -> tuple[int, ...]:
    """A text behind a beginning, which stands after the BOS where there is one; the same as `methods.elm.prefixed`."""
    at = int(bos is not None and ids[0] == bos)
    return (*ids[:at], *prefix, *ids[at:])
