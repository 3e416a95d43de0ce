"""One encoded example: tokens, which of them are labels, and where the turn ends."""

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
    """A row as the model reads it.

    Attributes:
        input_ids: the tokens, prompt first; no padding.
        label_mask: True = this token is a label: the assistant turn up to and including its end-of-turn
            token. Never True at position 0.
        turn_end: position of the end-of-turn token; None where it was cut away or there is none (plain text).
        prompt_length: tokens before the answer.
        row_id: id of the row.
        row: position of the row in its view, the key to cached reference values.
        answer_index: which answer of the row, where it has several.
        target_text: the answer's own text, as the row has it.
        targets: tokens to predict in the place of the labels, one at each position of `input_ids`; None = the
            labels themselves.
        hidden: a token that no position attends to, wherever it stands (`compat`); None = all tokens are
            seen.
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
        assert len(self.input_ids) == len(self.label_mask), "one flag a token"
        assert not any(self.label_mask[:1]), "nothing predicts the first token"
        assert self.targets is None or len(self.targets) == len(self.input_ids), "one target a token"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens that generation starts from."""
        return self.input_ids[: self.prompt_length]

    @property
    def label_ids(self) -> tuple[int, ...]:
        """The label tokens, in order."""
        return tuple(token for token, counted in zip(self.input_ids, self.label_mask, strict=True) if counted)

    def prompt_only(self) -> Encoded:
        """The view for generation: the prompt without the answer, no labels, the target's text kept."""
        return replace(
            self,
            input_ids=self.prompt_ids,
            label_mask=(False,) * self.prompt_length,
            turn_end=None,
            targets=None,
        )


def text_chunks(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Iterator[tuple[int, ...]]:
    """The tokens of a text in pieces of `max_length` at most, each begun with the BOS if the tokenizer uses one.

    A last piece without any token that something predicts (one token, no BOS) is left out.

    Raises:
        UserError: `max_length` leaves no room for a label.
    """
    prefix = special_prefix(tokenizer)
    size = max_length - len(prefix)
    if max_length < 2:
        raise UserError(
            f"max_length={max_length} leaves no token to predict", "give max_length of at least 2"
        )
    ids = plain_ids(tokenizer, text)
    for start in range(0, len(ids), size):
        chunk = (*prefix, *ids[start : start + size])
        if len(chunk) > 1:
            yield chunk


def encode_ids(ids: Sequence[int], *, row_id: str, row: int = 0, target_text: str = "") -> Encoded:
    """Plain text as an example: all tokens but the first are labels; no turn, no prompt but the first token."""
    mask = (False,) + (True,) * (len(ids) - 1)
    return Encoded(tuple(ids), mask, None, min(1, len(ids)), row_id, row, 0, target_text)
