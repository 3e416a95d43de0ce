"""Builders of views: what a view can make of its rows beside questions with answers.

A builder is a function of rows, template and the tokens an example may have; its keyword-only parameters are
the view's options.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.core.errors import UserError, unknown
from expunge.data.encoded import Encoded
from expunge.data.examples import question
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokens import plain_ids, special_prefix
from expunge.evaluation.wikitext import detokenized, pages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DOCUMENTS = ("rows", "wikitext")


def documents(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    text_key: str = "text",
    stride: int | None = None,
    split: str = "rows",
) -> list[Encoded]:
    """Whole documents in windows: every token is a label of exactly one of them.

    A document is read from a first token that is none of its own, the BOS, else the EOS (without either its
    first token has no predictor, and is not scored). A window has `max_length` tokens at most, of which the
    last `stride` are labels; the others, labels of windows before it, are their context.

    Args:
        rows: the texts.
        template: of the model; only its tokenizer is used.
        max_length: tokens of a window at most.
        text_key: key of the text.
        stride: labels of a window at most; None = all but its first token, so that windows hardly overlap.
        split: what a document is: each of the `rows`, or a page of `wikitext`, scored as written text rather
            than as that file's tokens.

    Returns:
        Window after window; a document is a row, a window one of its answers. `target_text` of the first is
        the document as its file has it, that of the others is empty.

    Raises:
        UserError: no such split, no text, or a stride out of range.
    """
    if split not in DOCUMENTS:
        raise UserError.of([unknown("split of documents", split, DOCUMENTS)])
    if max_length is None or max_length < 2:
        raise UserError(
            f"max_length={max_length}: windows need a length of at least 2", "give max_length, such as 2048"
        )
    step = max_length - 1 if stride is None else stride
    if not 1 <= step < max_length:
        raise UserError(
            f"stride={stride} is not between 1 and max_length - 1 = {max_length - 1}",
            "null takes the longest there is",
        )
    texts = [_text(row, text_key) for row in rows]
    written = pages(texts) if split == "wikitext" else texts
    scored = [detokenized(page) for page in written] if split == "wikitext" else written
    first = _first_token(template.tokenizer)
    encoded = []
    for number, (text, target) in enumerate(zip(scored, written, strict=True)):
        ids = (*first, *plain_ids(template.tokenizer, text))
        for window, (start, begin, end) in enumerate(windows(len(ids), max_length, step)):
            mask = (False,) * (begin - start) + (True,) * (end - begin)
            shown = "" if window else target
            encoded.append(
                Encoded(
                    ids[start:end],
                    mask,
                    None,
                    begin - start,
                    f"{rows.fingerprint}#{number}",
                    number,
                    window,
                    shown,
                )
            )
    return encoded


def windows(size: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first label, end) of each window over `size` tokens; positions 1 to size - 1 are labels, each of one window."""
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
    prompt: int,
    target: int | None = None,
    count: int | None = 100,
) -> list[Encoded]:
    """The first tokens of passages as prompts, what follows as what should not be written.

    Texts are cut, each for itself, into passages of `max_length` tokens; whatever is shorter than prompt and
    target is left out.

    Args:
        rows: the texts.
        template: of the model; only its tokenizer is used.
        max_length: tokens of a passage; the same for views of the same passages.
        text_key: key of the text.
        prompt: tokens of the prompt.
        target: tokens after it that are compared with, None = the rest of the passage.
        count: passages at most, evenly spread over all there are; None = all.

    Raises:
        UserError: no passage is long enough, or they are cut shorter than prompt and target.
    """
    if max_length is None:
        raise UserError("passages without max_length", "give the tokens of a passage, such as 500")
    size, length = max_length, max_length - prompt if target is None else target
    if min(prompt, length) < 1 or size < prompt + length:
        raise UserError(
            f"passages of {size} tokens hold no prompt of {prompt} with a target of {length}",
            "raise max_length (the model's own limit counts as well), or lower prompt or target",
        )
    prefix, found = special_prefix(template.tokenizer), []
    for row in rows:
        ids = plain_ids(template.tokenizer, _text(row, text_key))
        found += [ids[start : start + size] for start in range(0, len(ids), size) if len(ids) - start >= size]
    if not found:
        raise UserError(
            f"no text of {rows.source} has {size} tokens, a passage's length",
            "give longer texts, or lower max_length",
        )
    kept = (
        [found[number * len(found) // count] for number in range(count)]
        if count is not None and count < len(found)
        else found
    )
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
    count: int | None = None,
) -> list[Encoded]:
    """Prompts without an answer.

    Args:
        rows: records with a prompt; equal prompts are one.
        template: of the model.
        max_length: tokens of a prompt at most; a longer one loses its beginning.
        prompt_key: key of the prompt; a dot leads into a record, such as `prompt.text`.
        chat: put it as the model's template puts a question; false = as it is, to be continued.
        count: prompts at most, evenly spread; None = all.
    """
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(_at(row, prompt_key), row)
    texts = list(firsts)
    kept = (
        [texts[number * len(texts) // count] for number in range(count)]
        if count is not None and count < len(texts)
        else texts
    )
    prefix, encoded = special_prefix(template.tokenizer), []
    for number, text in enumerate(kept):
        # An example has an answer; nothing of this one is kept.
        asked = template.encode(text, "-", row_id=firsts[text].id).prompt_ids if chat else ()
        ids = asked or (*prefix, *plain_ids(template.tokenizer, text))
        ids = ids if max_length is None else ids[-max_length:]
        encoded.append(Encoded(ids, (False,) * len(ids), None, len(ids), firsts[text].id, number))
    return encoded


def choices(
    rows: RowSet,
    template: Template,
    max_length: int | None,
    *,
    intro: str = "",
    question_key: str = "question",
    choices_key: str = "choices",
    answer_key: str = "answer",
) -> list[Encoded]:
    """Multiple choice: the question with its answers behind letters, then each letter as an example.

    The text is that of lm-evaluation-harness for MMLU and WMDP, without worked examples: `intro`, the
    question, a line an answer (`A. ...`), `Answer:`; a letter comes after a blank. No chat template.

    Args:
        rows: records with a question, a list of answers, and which is right: a number from 0, or a letter.
        template: of the model; only its tokenizer is used.
        max_length: tokens at most; of a longer question the beginning, but for the BOS, is left out, and a
            note goes to the log.
        intro: before the question; `{key}` stands for that key of the row, underscores as blanks.
        question_key: key of the question.
        choices_key: key of the answers.
        answer_key: key of the right one.

    Returns:
        Row after row, letter after letter; labels are the letter's tokens, `target_text` is the right letter.

    Raises:
        UserError: a row that is no such record.
    """
    encoded: list[Encoded] = []
    prefix, cut = special_prefix(template.tokenizer), 0
    for number, row in enumerate(rows):
        options, right = _options(row, choices_key, answer_key)
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        text = "\n".join([_intro(intro, row) + question(row, question_key).strip(), *lines, "Answer:"])
        context, endings = _continued(
            template.tokenizer, text, [f" {letter}" for letter in LETTERS[: len(options)]]
        )
        # As much for every letter, so that all are read after the same text.
        longest = len(prefix) + len(context) + max(map(len, endings))
        excess = max(0, longest - max_length) if max_length is not None else 0
        cut += excess > 0
        context = [*prefix, *context[excess:]]
        for place, ending in enumerate(endings):
            mask = (False,) * len(context) + (True,) * len(ending)
            encoded.append(
                Encoded((*context, *ending), mask, None, len(context), row.id, number, place, LETTERS[right])
            )
    if cut:
        log.warning(
            "%s: %d of %d questions have more than %s tokens; their beginning is left out",
            rows.name,
            cut,
            len(rows),
            max_length,
        )
    return encoded


def harness_task(
    rows: RowSet, template: Template, max_length: int | None, *, task: str, include_path: str | None = None
) -> list[Encoded]:
    """No examples: lm-eval makes its own from the task's documents.

    Args:
        rows: empty.
        template: not used.
        max_length: not used.
        task: its name in the harness.
        include_path: folder with tasks of the user's own.
    """
    return []


def harness_version() -> str | None:
    """Version of lm-eval, None where it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        return None


def _named_by_task(options: Mapping[str, Any]) -> RowSet:
    return RowSet.of(str(options["task"]), (), "lm-eval")


@dataclass(frozen=True)
class Builder:
    """How a view of one kind makes its examples.

    Attributes:
        build: rows, template, tokens an example may have, options -> examples, row after row.
        own_rows: options -> the rows of a view that reads no file; None = `hf_args` say where they are.
        version: of whatever else the examples depend on.
    """

    build: Callable[..., list[Encoded]]
    own_rows: Callable[[Mapping[str, Any]], RowSet] | None = None
    version: Callable[[], str | None] | None = None

    def options(self) -> dict[str, bool]:
        """The view's options, by name, and whether a view must give them."""
        parameters = inspect.signature(self.build).parameters.values()
        return {
            item.name: item.default is item.empty for item in parameters if item.kind is item.KEYWORD_ONLY
        }


BUILDERS: Mapping[str, Builder] = {
    "documents": Builder(documents),
    "passages": Builder(passages),
    "prompts": Builder(prompts),
    "choices": Builder(choices),
    "harness": Builder(harness_task, _named_by_task, harness_version),
}


def _first_token(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    known = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    return tuple(int(token) for token in known[:1])


def _text(row: Row, key: str) -> str:
    text = row.fields.get(key)
    if not isinstance(text, str):
        raise UserError(
            f"row {row.index} ({row.id}) has no text under {key!r}; it has: {', '.join(sorted(row.fields))}",
            "correct text_key",
        )
    return text


def _at(row: Row, dotted: str) -> str:
    value: Any = row.fields
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        told = f"row {row.index} ({row.id}) has no text under {dotted!r}; it has: {', '.join(sorted(row.fields))}"
        raise UserError(told, "correct prompt_key")
    return value


def _intro(intro: str, row: Row) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: _at(row, match[1]).replace("_", " "), intro)


def _options(row: Row, choices_key: str, answer_key: str) -> tuple[Sequence[str], int]:
    """The answers and the position of the right one."""
    options, answer = row.fields.get(choices_key), row.fields.get(answer_key)
    # From CSV a number comes as text.
    if isinstance(answer, str):
        answer = (
            LETTERS.index(answer.strip().upper())
            if answer.strip().upper() in [*LETTERS]
            else int(answer)
            if answer.isdigit()
            else None
        )
    told = f"row {row.index} ({row.id})"
    if (
        not isinstance(options, list)
        or not 2 <= len(options) <= len(LETTERS)
        or not all(isinstance(option, str) for option in options)
    ):
        raise UserError(
            f"{told} has no list of 2 to {len(LETTERS)} texts under {choices_key!r}",
            "correct choices_key, or mend the row",
        )
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        given = row.fields.get(answer_key)
        raise UserError(
            f"{told}: {answer_key}={given!r} is none of its {len(options)} answers",
            "give a number from 0, or a letter",
        )
    return options, answer


def _continued(
    tokenizer: PreTrainedTokenizerBase, text: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """(tokens of the text, tokens of each ending); no BOS."""
    context = plain_ids(tokenizer, text)
    found = []
    for ending in endings:
        whole = plain_ids(tokenizer, text + ending)
        # A token that spans the border would be two: the model reads the text alone before it answers.
        found.append(
            whole[len(context) :] if whole[: len(context)] == context else plain_ids(tokenizer, ending)
        )
    return context, found
