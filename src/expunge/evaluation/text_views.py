"""Views of plain text: documents in windows, passages to continue, prompts. One function per kind of view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from expunge.core.errors import UserError
from expunge.core.ranges import Count
from expunge.data.encoded import Encoded
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids, special_prefix
from expunge.evaluation.wikitext import detokenized, pages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


def documents(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    text_key: str = "text",
    stride: Count | None = None,
    split: Literal["rows", "wikitext"] = "rows",
) -> list[Encoded]:
    """Whole documents in windows: every token is a label in exactly one window.

    The BOS, else the EOS, precedes a document (without both, its first token has no predictor and is not
    scored). A window has at most `max_length` tokens. The last `stride` are labels; the others are context
    and were labels of earlier windows.

    Args:
        rows: the texts.
        template: of the model; only its tokenizer is used.
        max_length: maximum number of tokens of a window.
        text_key: key of the text.
        stride: maximum number of labels of a window; None = all tokens except the first.
        split: what a document is: each of the `rows`, or a page of `wikitext`, scored without the
            tokenization of that file.

    Returns:
        Windows in order; a document is a row, a window is one of its answers. `target_text` of the first
        window is the document as in its file; that of the others is empty.

    Raises:
        UserError: no text, or a stride out of range.
    """
    if max_length is None or max_length < 2:
        raise UserError(
            f"max_length={max_length}: windows need a length of at least 2", "give max_length, such as 2048"
        )
    step = max_length - 1 if stride is None else stride
    if not 1 <= step < max_length:
        raise UserError(
            f"stride={stride} is not between 1 and max_length - 1 = {max_length - 1}",
            "null means the largest stride",
        )
    texts = [text_at(row, text_key, "text_key") for row in rows]
    written = pages(texts) if split == "wikitext" else texts
    scored = [detokenized(page) for page in written] if split == "wikitext" else written
    first = _first_token(template.tokenizer)
    encoded = []
    for number, (text, target) in enumerate(zip(scored, written, strict=True)):
        ids = (*first, *plain_ids(template.tokenizer, text))
        for window, (start, begin, end) in enumerate(windows(len(ids), max_length, step)):
            mask = (False,) * (begin - start) + (True,) * (end - begin)
            row_id, shown = f"{rows.fingerprint}#{number}", "" if window else target
            encoded.append(Encoded(ids[start:end], mask, None, begin - start, row_id, number, window, shown))
    return encoded


def windows(size: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first label, end) of each window over `size` tokens; each position from 1 is a label once."""
    done = 1
    while done < size:
        end = min(size, max_length if done == 1 else done + stride)
        yield max(0, end - max_length), done, end
        done = end


def passages(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    text_key: str = "text",
    prompt: Count,
    target: Count | None = None,
    count: Count | None = 100,
) -> list[Encoded]:
    """The first tokens of passages are prompts; the tokens after them are what the model should not write.

    Each text is cut into passages of `max_length` tokens; a shorter rest is left out.

    Args:
        rows: the texts.
        template: of the model; only its tokenizer is used.
        max_length: tokens of a passage; use the same value in all views of the same passages.
        text_key: key of the text.
        prompt: tokens of the prompt.
        target: number of tokens after the prompt that are compared, None = the rest of the passage.
        count: maximum number of passages, evenly spread over all; None = all.

    Raises:
        UserError: no text is long enough, or a passage is shorter than prompt and target.
    """
    if max_length is None:
        raise UserError("passages need max_length", "give the tokens of a passage, such as 500")
    size, length = max_length, max_length - prompt if target is None else target
    if min(prompt, length) < 1 or size < prompt + length:
        raise UserError(
            f"passages of {size} tokens hold no prompt of {prompt} with a target of {length}",
            "raise max_length (the model's own limit applies too), or lower prompt or target",
        )
    prefix, found = special_prefix(template.tokenizer), []
    for row in rows:
        ids = plain_ids(template.tokenizer, text_at(row, text_key, "text_key"))
        found += [ids[start : start + size] for start in range(0, len(ids), size) if len(ids) - start >= size]
    if not found:
        raise UserError(
            f"no text of {rows.source} has {size} tokens, a passage's length",
            "give longer texts, or lower max_length",
        )
    kept = _spread(found, count)
    encoded = []
    for number, ids in enumerate(kept):
        shown = (*prefix, *ids[: prompt + length])
        begin = len(prefix) + prompt
        mask = tuple(position >= begin for position in range(len(shown)))
        text = template.tokenizer.decode(ids[prompt : prompt + length], skip_special_tokens=True)
        encoded.append(
            Encoded(shown, mask, None, begin, f"{rows.fingerprint}#{number}", number, 0, str(text))
        )
    return encoded


def prompts(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    prompt_key: str = "prompt",
    chat: bool = True,
    count: Count | None = None,
) -> list[Encoded]:
    """Prompts without an answer.

    Args:
        rows: records with a prompt; equal prompts are used once.
        template: of the model.
        max_length: maximum number of tokens of a prompt; a longer one loses its beginning.
        prompt_key: key of the prompt; a dot leads into a record, such as `prompt.text`.
        chat: put the prompt into the model's template as a question; false = plain text to continue.
        count: maximum number of prompts, evenly spread; None = all.
    """
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(text_at(row, prompt_key), row)
    kept = _spread(list(firsts), count)
    prefix, encoded = special_prefix(template.tokenizer), []
    for number, text in enumerate(kept):
        # The template needs an answer; it is dropped.
        asked = template.encode(text, "-", row_id=firsts[text].id).prompt_ids if chat else ()
        ids = asked or (*prefix, *plain_ids(template.tokenizer, text))
        ids = ids if max_length is None else ids[-max_length:]
        encoded.append(Encoded(ids, (False,) * len(ids), None, len(ids), firsts[text].id, number))
    return encoded


def text_at(row: Row, dotted: str, name: str = "prompt_key") -> str:
    """The text under the key that the option `name` gives; a dot leads into a record.

    Raises:
        UserError: there is none.
    """
    value: Any = row.fields
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        known = ", ".join(sorted(row.fields))
        message = f"row {row.index} ({row.id}) has no text under {dotted!r}; it has: {known}"
        raise UserError(message, f"correct {name}")
    return value


def _spread(items: Sequence[T], count: int | None) -> Sequence[T]:
    """`count` items, evenly spread over all; all of them if there are no more, or if `count` is None."""
    if count is None or count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def _first_token(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    known = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    return tuple(int(token) for token in known[:1])
