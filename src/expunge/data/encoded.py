"""One encoded example: tokens, labels, and the end of the turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expunge.core.errors import UserError
from expunge.data.tokenizer_traits import plain_ids, special_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens for the model.

    Attributes:
        input_ids: the tokens, prompt first; no padding.
        label_mask: True = this token is a label: the assistant turn up to and including its end-of-turn
            token. Never True at position 0.
        turn_end: position of the end-of-turn token; None if it was cut away or does not exist (plain text).
        prompt_length: number of tokens before the answer.
        row_id: id of the row.
        row: position of the row in its view, the key to cached reference values.
        answer_index: number of the answer, if the row has several.
        target_text: text of the answer, exactly as in the row.
        targets: tokens to predict instead of the labels, one for each position of `input_ids`; None = the
            labels themselves.
        hidden: a token id that no position attends to (`compat`); None = all tokens are visible.
    """

    input_ids: tuple[int, ...]
    label_mask: tuple[bool, ...]
    turn_end: int | None
    prompt_length: int
    row_id: str
    row: int = 0
    answer_index: int = 0
    target_text: str = ""
    targets: tuple[int, ...] | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.label_mask), "one flag per token"
        assert not any(self.label_mask[:1]), "nothing predicts the first token"
        assert self.targets is None or len(self.targets) == len(self.input_ids), "one target per token"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt for generation."""
        return self.input_ids[: self.prompt_length]

    @property
    def label_ids(self) -> tuple[int, ...]:
        """The label tokens, in order."""
        return tuple(token for token, counted in zip(self.input_ids, self.label_mask, strict=True) if counted)

    def prompt_only(self) -> Encoded:
        """The example for generation: the prompt without answer and labels; the target text is kept."""
        return replace(
            self,
            input_ids=self.prompt_ids,
            label_mask=(False,) * self.prompt_length,
            turn_end=None,
            targets=None,
        )


def text_chunks(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Iterator[tuple[int, ...]]:
    """Cut the tokens of a text into pieces of at most `max_length`, each with a leading BOS if one is used.

    A last piece of one token without BOS is left out, because it has no label.

    Raises:
        UserError: `max_length` leaves no room for a label.
    """
    prefix = special_prefix(tokenizer)
    size = max_length - len(prefix)
    if max_length < 2:
        raise UserError(f"max_length={max_length} leaves no token to predict", "set max_length to at least 2")
    ids = plain_ids(tokenizer, text)
    for start in range(0, len(ids), size):
        chunk = (*prefix, *ids[start : start + size])
        if len(chunk) > 1:
            yield chunk


def encode_ids(ids: Sequence[int], *, row_id: str, row: int = 0, target_text: str = "") -> Encoded:
    """Plain text as an example: the first token is the prompt, all others are labels, no end of turn."""
    mask = (False,) + (True,) * (len(ids) - 1)
    return Encoded(tuple(ids), mask, None, min(1, len(ids)), row_id, row, 0, target_text)
