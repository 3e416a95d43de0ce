"""What the model writes after the prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from expunge.core.errors import UserError
from expunge.core.ranges import Count
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.collect.decoding import ends_of, only
from expunge.evaluation.tables import Examples, GenerationTable
from expunge.lm.packing import token_budgeted_batches
from expunge.models.outputs import unwrapped

log = logging.getLogger(__name__)
ROW_TOKENS = 512
"""Tokens that one row of `batch_size` stands for: the usual maximum of the encoding."""


@dataclass(frozen=True)
class GenerationSettings:
    """How the model writes: always greedily.

    Attributes:
        max_new_tokens: tokens of a generation at most.
        do_sample: the field's key; metrics are of greedy generations.
        stop: a generation is cut at the first of these texts.
    """

    max_new_tokens: Count = 200
    do_sample: Literal[False] = False
    stop: Sequence[str] | None = None


class Generations(Collector):
    """What the model writes after the prompts."""

    kind = "generations"
    table = GenerationTable
    section = "generation"
    settings = GenerationSettings

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[GenerationTable]:
        """View after view."""
        for view, settings in requests:
            chosen = GenerationSettings(**settings)
            yield collect_generations(subject, view.encoded, view.examples, chosen, cost)


def collect_generations(
    subject: Subject, encoded: Sequence[Encoded], rows: Examples, settings: GenerationSettings, cost: Cost
) -> GenerationTable:
    """Continue every row's prompt greedily; equal prompts once. Texts are without special tokens.

    The token budget of a batch is batch_size x 512, prompts and continuations counted. Decoding stops at the
    model's end-of-text tokens and at the template's end of turn. No other setting of the model is used.

    Raises:
        UserError: a row has several answers.
    """
    new_tokens = settings.max_new_tokens
    if int(rows.answer_B.max(initial=0)) > 0:
        raise UserError(
            "a view for generation has rows with several answers", "give answer_key with one answer a row"
        )
    prompts = list(dict.fromkeys(item.prompt_ids for item in encoded))
    firsts = {item.prompt_ids: item.prompt_only() for item in reversed(encoded)}
    lengths = [len(prompt) + new_tokens for prompt in prompts]
    batches = token_budgeted_batches(lengths, subject.batch_size * ROW_TOKENS)
    inner, tokenizer = unwrapped(subject.model), subject.tokenizer
    decoding = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": ends_of(inner, tokenizer, encoded) or None,
        "pad_token_id": subject.pad_id,
        "bos_token_id": getattr(cast(Any, inner).generation_config, "bos_token_id", None),
    }
    log.info("generations: %d prompts in %d batches", len(prompts), len(batches))
    found: dict[int, str] = {}
    with running(subject.model, cost), only(inner, **decoding):
        for batch in subject.parallel.mine(batches):
            written = _generate(subject, [firsts[prompts[line]] for line in batch], cost)
            found |= dict(zip(batch, written, strict=True))
        texts = subject.parallel.merged(found)
    number = {prompt: line for line, prompt in enumerate(prompts)}
    stops = settings.stop or ()
    shown = [tokenizer.decode(item.prompt_ids, skip_special_tokens=True) for item in encoded]
    return GenerationTable(
        rows, tuple(shown), tuple(_cut(texts[number[item.prompt_ids]], stops) for item in encoded)
    )


def _generate(subject: Subject, prompts: Sequence[Encoded], cost: Cost) -> list[str]:
    side = collate(prompts, subject.pad_id, side="left")
    input_ids_BT, mask_BT = side["input_ids"].to(subject.device), side["attention_mask"].to(subject.device)
    with subject.autocast():
        output_BT = cast(Any, unwrapped(subject.model)).generate(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            # With split weights, a process that has finished its rows still takes part in the others' passes.
            synced_gpus=subject.parallel.sharded,
        )
    written_BT = output_BT[:, input_ids_BT.shape[1] :]
    cost.forward_tokens += int(mask_BT.sum())
    cost.padded_tokens += input_ids_BT.numel()
    cost.generated_tokens += written_BT.numel()
    texts: list[str] = subject.tokenizer.batch_decode(written_BT, skip_special_tokens=True)
    return texts


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
