"""Facts about a tokenizer: plain ids, use of BOS, the end of a turn, and its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PAD_ADDED = "pad_token_added"
"""Key in the settings and files of a tokenizer: it came without a pad token, and one was added."""


class Closing(NamedTuple):
    """The end of a turn: text after the answer, whether an EOS follows, whether there is an end token."""

    text: str
    eos: bool
    ends: bool


def find_closing(tokenizer: PreTrainedTokenizerBase, tail: str) -> Closing:
    """Find the end of a turn in `tail`, the text that the template writes after the answer.

    If `tail` has a special token, the turn ends with the first one. Else it ends with the EOS, if the
    tokenizer has one, after `tail` unless `tail` is blank.
    """
    # Some vocabularies contain runs of blanks as added tokens: these are separators and do not end a turn.
    special = {
        token for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()) if token.strip()
    }
    found = [(tail.index(token), -len(token)) for token in special if token in tail]
    if found:
        start, minus_size = min(found)  # the earliest; if several start there, the longest
        return Closing(tail[: start - minus_size], eos=False, ends=True)
    eos = tokenizer.eos_token_id is not None
    return Closing(tail if tail.strip() else "", eos=eos, ends=eos)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text, by default without BOS and EOS; special tokens in the text are recognised."""
    ids: list[int] = tokenizer(
        text, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
    )["input_ids"]
    return ids


def field_pad_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The pad token that open-unlearning uses: the original pad token of the tokenizer, else the EOS."""
    pad: int | None = tokenizer.pad_token_id
    eos: int | None = tokenizer.eos_token_id
    return eos if pad is None or tokenizer.init_kwargs.get(PAD_ADDED) else pad


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token in a list if the tokenizer adds it to plain text, else an empty list."""
    bos = tokenizer.bos_token_id
    if bos is None or plain_ids(tokenizer, "a", add_special_tokens=True)[:1] != [bos]:
        return []
    return [int(bos)]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Everything the output of a tokenizer depends on: its whole table and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    table = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return [table, tokenizer.bos_token, tokenizer.eos_token]
