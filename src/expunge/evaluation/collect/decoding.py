"""What all generation shares: the token to pad with, the tokens that end a text, and its settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from expunge.data.encoded import Encoded


def pad_id_of(tokenizer: Any) -> int:
    """The token that fills short rows: the pad token, else the EOS, else 0; padding is masked."""
    known = (getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id"))
    return next((int(token) for token in known if token is not None), 0)


def ends_of(model: Any, tokenizer: Any, asked: Sequence[Encoded]) -> list[int]:
    """The tokens that end a text: those of the model, the special tokens that end turns, and the EOS."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set(own if isinstance(own, list) else [] if own is None else [own])
    turn_ends = {item.input_ids[item.turn_end] for item in asked if item.turn_end is not None}
    ends |= turn_ends & set(tokenizer.all_special_ids)
    ends |= set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    return sorted(ends)


@contextmanager
def only(model: Any, **settings: Any) -> Iterator[None]:
    """While open, generation uses these settings alone, with a cache.

    transformers (5.23) takes what is unset, such as penalties, from the model's own settings.
    """
    from transformers import GenerationConfig

    made: Any = GenerationConfig  # untyped in transformers
    config = made(use_cache=True, **settings)
    # An adapter copies its settings to the model underneath and leaves them there.
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    own = [owner.generation_config for owner in owners]
    try:
        model.generation_config = config
        yield
    finally:
        for owner, kept in zip(owners, own, strict=True):
            owner.generation_config = kept
