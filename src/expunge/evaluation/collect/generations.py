"""What the model writes after the prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from expunge.core.errors import UserError
from expunge.core.ranges import Count
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.tables import Examples, GenerationTable
from expunge.lm import runtime
from expunge.lm.packing import token_budgeted_batches
from expunge.models.outputs import unwrapped
from expunge.models.parallel import Parallel

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
            rows = (view.encoded, view.examples, GenerationSettings(**settings))
            yield collect_generations(subject.model, subject.tokenizer, *rows, **subject.batching, cost=cost)


def collect_generations(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    rows: Examples,
    settings: GenerationSettings,
    *,
    pad_id: int,
    batch_size: int = 32,
    compute_dtype: torch.dtype | None = None,
    parallel: Parallel | None = None,
    cost: Cost | None = None,
) -> GenerationTable:
    """Continue every row's prompt greedily; equal prompts once.

    Args:
        model: causal language model.
        tokenizer: to read the tokens back.
        encoded: one example per row; only its prompt is read.
        rows: which rows they are.
        settings: length and stop texts.
        pad_id: token to pad with, on the left.
        batch_size: token budget of a batch = batch_size x 512, prompts and continuations counted.
        compute_dtype: autocast to it.
        parallel: how the rows are split over processes; None = as the weights are.
        cost: counts are added to it.

    Returns:
        Prompts and continuations as text, special tokens left out.

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
    batches = token_budgeted_batches(
        [len(prompt) + new_tokens for prompt in prompts], batch_size * ROW_TOKENS
    )
    config = _generation_config(unwrapped(model), tokenizer, encoded, new_tokens, pad_id)
    log.info("generations: %d prompts in %d batches", len(prompts), len(batches))
    found: dict[int, str] = {}
    parallel = Parallel.of(model) if parallel is None else parallel
    with running(model, cost) as cost:
        for batch in parallel.mine(batches):
            asked = [firsts[prompts[line]] for line in batch]
            written = _generate(model, tokenizer, asked, config, pad_id, compute_dtype, cost)
            found |= dict(zip(batch, written, strict=True))
        texts = parallel.merged(found)
    number = {prompt: line for line, prompt in enumerate(prompts)}
    stops = settings.stop or ()
    shown = [tokenizer.decode(item.prompt_ids, skip_special_tokens=True) for item in encoded]
    return GenerationTable(
        rows, tuple(shown), tuple(_cut(texts[number[item.prompt_ids]], stops) for item in encoded)
    )


def _generation_config(
    model: Any, tokenizer: Any, encoded: Sequence[Encoded], new_tokens: int, pad_id: int
) -> Any:
    """Greedy decoding. It stops at the model's end-of-text tokens and at the template's end of turn.

    No other setting of the model is used.
    """
    from transformers import GenerationConfig

    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set(own if isinstance(own, list) else [] if own is None else [own])
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    turn_ends = {item.input_ids[item.turn_end] for item in encoded if item.turn_end is not None}
    ends |= turn_ends & set(tokenizer.all_special_ids)
    bos = getattr(model.generation_config, "bos_token_id", None)
    made: Any = GenerationConfig  # untyped in transformers
    return made(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_id,
        bos_token_id=bos,
    )


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Encoded],
    config: Any,
    pad_id: int,
    compute_dtype: torch.dtype | None,
    cost: Cost,
) -> list[str]:
    inner: Any = unwrapped(model)
    parallel = Parallel.of(inner)
    where = parallel.device
    side = collate(prompts, pad_id, side="left")
    input_ids_BT = side["input_ids"].to(where)
    with runtime.autocast(where, compute_dtype), _only(inner, config):
        output_BT = inner.generate(
            input_ids=input_ids_BT,
            attention_mask=side["attention_mask"].to(where),
            # With split weights, a process that has finished its rows still takes part in the others' passes.
            synced_gpus=parallel.sharded,
        )
    written_BT = output_BT[:, input_ids_BT.shape[1] :]
    cost.forward_tokens += int(side["attention_mask"].sum())
    cost.padded_tokens += input_ids_BT.numel()
    cost.generated_tokens += written_BT.numel()
    texts: list[str] = tokenizer.batch_decode(written_BT, skip_special_tokens=True)
    return texts


@contextmanager
def _only(model: Any, config: Any) -> Iterator[None]:
    """Replace the model's generation settings by ours for a while.

    transformers (5.23) takes what our settings leave unset, such as penalties, from the model's own.
    """
    # An adapter copies its settings to the model underneath and leaves them there.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    own = [owner.generation_config for owner in owners]
    try:
        model.generation_config = config
        yield
    finally:
        for owner, kept in zip(owners, own, strict=True):
            owner.generation_config = kept


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
