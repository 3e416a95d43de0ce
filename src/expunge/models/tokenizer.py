"""Load a tokenizer, with a pad token that needs no new embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer

from expunge.config.model_keys import TOKENIZER_KEYS
from expunge.core.errors import UserError, unknown
from expunge.data.tokenizer_traits import PAD_ADDED
from expunge.models.adapter_folder import BaseRecord, is_adapter_folder
from expunge.models.location import locate, not_found

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
RESERVED = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|endoftext|>",
    "<|vision_pad|>",
    "<unk>",
    "[UNK]",
)
"""Tokens that are in vocabularies but not in answers, in order of preference.

Masks come from the encoding, so even an end-of-text token as pad token hides no label.
"""


def load_tokenizer(tokenizer_args: Mapping[str, Any], *, notices: list[str] | None = None) -> Any:
    """Load a tokenizer and make sure that it has a pad token.

    A tokenizer without a pad token gets one from its own vocabulary: a reserved token, else the end-of-text
    token. The vocabulary and the embeddings of the model never grow. `padding_side` is not used: batches are
    padded from the encoding.

    Args:
        tokenizer_args: keys of `from_pretrained` (`TOKENIZER_KEYS`); the path `expunge/mini` is the embedded
            tokenizer.
        notices: list that gets a notice about a chosen pad token.

    Returns:
        A transformers tokenizer whose `pad_token_id` is set.

    Raises:
        UserError: a key is unknown, no tokenizer was found, or it has no token that can be the pad token.
    """
    faults = [
        unknown("key of model.tokenizer_args", key, TOKENIZER_KEYS)
        for key in tokenizer_args
        if key not in TOKENIZER_KEYS
    ]
    if faults:
        raise UserError.of(faults)
    place = locate(tokenizer_args, "model.tokenizer_args")
    if (
        is_adapter_folder(place.folder)
        and place.folder is not None
        and not any((place.folder / name).is_file() for name in FILES)
    ):
        # An adapter saved without a tokenizer uses the tokenizer of its base.
        place = locate(
            BaseRecord.read(place.folder).model_args, "the base of the adapter in model.tokenizer_args"
        )
    given = {key: value for key, value in tokenizer_args.items() if value is not None}
    for key in ("pretrained_model_name_or_path", "gguf_file", "pad_token"):
        given.pop(key, None)
    if place.gguf_file is not None:
        given["gguf_file"] = place.gguf_file
    given["trust_remote_code"] = bool(given.get("trust_remote_code", False))
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.source, **given)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise not_found(place, error, given.get("cache_dir")) from error
    ensure_pad_token(tokenizer, tokenizer_args.get("pad_token"), notices)
    return tokenizer


def ensure_pad_token(tokenizer: Any, asked: str | None = None, notices: list[str] | None = None) -> None:
    """Set the pad token to a token of the existing vocabulary.

    Raises:
        UserError: the requested token is not in the vocabulary, or there is no end-of-text token to use.
    """
    if asked is None and tokenizer.pad_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab()
    if asked is not None and asked not in vocabulary:
        raise UserError(
            f"pad_token {asked!r} is not in the tokenizer's vocabulary",
            "choose a token of the vocabulary, because embeddings are never resized",
        )
    candidates = (asked,) if asked is not None else (*RESERVED, tokenizer.eos_token)
    token = next((name for name in candidates if name is not None and name in vocabulary), None)
    if token is None:
        raise UserError(
            "the tokenizer has neither a pad token nor an end-of-text token",
            "set model.tokenizer_args.pad_token to a token of its vocabulary",
        )
    tokenizer.pad_token = token
    tokenizer.init_kwargs[PAD_ADDED] = asked is None
    if notices is not None and asked is None:
        notices.append(f"the tokenizer has no pad token, using its token {token!r}")
