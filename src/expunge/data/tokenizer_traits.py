"""What the data room asks of a tokenizer: plain ids, its BOS habit, what ends a turn, and its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PAD_ADDED = "pad_token_added"
"""Key of a tokenizer's own settings, and so of its files, that says that it came without a pad token."""


class Closing(NamedTuple):
    """What ends the assistant turn.

    Attributes:
        text: written after the answer.
        eos: append the tokenizer's EOS after that.
        ends: the turn ends in a token of its own.
    """

    text: str
    eos: bool
    ends: bool


def find_closing(tokenizer: PreTrainedTokenizerBase, tail: str) -> Closing:
    """What closes a turn, given all text that the template writes after the answer.

    The text up to the first special token if there is one; else the EOS, if the tokenizer has one, after the
    text unless that is blank.
    """
    # Some vocabularies hold runs of blanks as added tokens: those separate, they do not end anything.
    special = {
        token for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if token.strip()
    }
    found = [(tail.index(token), -len(token)) for token in special if token in tail]
    if found:
        start, minus_size = min(found)  # the earliest, and of those the longest
        return Closing(tail[: start - minus_size], eos=False, ends=True)
    eos = tokenizer.eos_token_id is not None
    return Closing(tail if tail.strip() else "", eos=eos, ends=eos)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text; no BOS or EOS is added unless asked for, special tokens written out in the text are recognised."""
    ids: list[int] = tokenizer(
        text, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def field_pad_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that open-unlearning pads with: the one that the tokenizer came with, else the EOS."""
    pad: int | None = tokenizer.pad_token_id
    eos: int | None = tokenizer.eos_token_id
    return eos if pad is None or tokenizer.init_kwargs.get(PAD_ADDED) else pad


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token in a list if the tokenizer puts one before plain text, else an empty list."""
    bos = tokenizer.bos_token_id
    if bos is None or plain_ids(tokenizer, "a", add_special_tokens=True)[:1] != [bos]:
        return []
    return [int(bos)]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What a tokenizer's output depends on: its whole table and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return [table, tokenizer.bos_token, tokenizer.eos_token]
