"""The data sets of a configuration: `data.*.NAME = {handler, args}`.

A handler is a function `handler(context, *, hf_args, ...) -> Dataset`. The configuration names it as
`module:function`, so users can write their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.core.binding import Bound
from expunge.core.errors import UserError
from expunge.core.fingerprint import fingerprint
from expunge.core.ranges import Count
from expunge.data.alternate_answers import drawn, from_file, one_text
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.examples import answers_of, encode_rows, question
from expunge.data.refusals import refusal_lines
from expunge.data.rows import Row, RowSet, load_rows, number_repeats, row_ids
from expunge.data.select import chosen_rows
from expunge.data.template import Shot, Template

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What a handler gets in addition to its arguments.

    Attributes:
        name: name of the data set in the configuration.
        template: template of the model, with its tokenizer.
        data_root: folder of local data sets.
        seed: seed of the run.
        switches: keyword arguments of `Template.encode` that `compat` sets.
    """

    name: str
    template: Template
    data_root: Path | None = None
    seed: int = 0
    switches: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Encoded rows.

    Attributes:
        name: name of the data set in the configuration.
        rows: the rows.
        encoded: one example per row; `encoded[i].row == i`.
        fingerprint: hash of rows, template, tokenizer, max_length and all else that affects the tokens.
        alternates: for each row the same question with another answer; None if the handler makes none.
    """

    name: str
    rows: RowSet
    encoded: list[Encoded]
    fingerprint: str
    alternates: list[Encoded] | None = None

    def __len__(self) -> int:
        return len(self.encoded)


def build_dataset(
    name: str,
    chosen: Bound,
    template: Template,
    data_root: Path | None = None,
    seed: int = 0,
    switches: Mapping[str, Any] | None = None,
) -> Dataset:
    """Build one data set of the configuration: `chosen` is its handler, the others are the `Context`.

    Draws of alternates depend only on the seed and on the row id.

    Raises:
        UserError: the rows have a fault.
    """
    context = Context(name, template, data_root, seed, dict(switches or {}))
    dataset: Dataset = chosen.load()(context, **chosen.kwargs)
    log.info(
        "data set %s: %d rows of %s, %d examples", name, len(dataset.rows), dataset.rows.source, len(dataset)
    )
    return dataset


def qa(
    context: Context,
    *,
    hf_args: Mapping[str, Any],
    question_key: str = "question",
    answer_key: str = "answer",
    few_shot_dataset_hf_args: Mapping[str, Any] | None = None,
    max_length: Count | None = 512,
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> Dataset:
    """Questions with their answers.

    Args:
        context: name, template, data root, seed, switches.
        hf_args: source of the rows, see `load_rows`.
        question_key: key of the user turn.
        answer_key: key of the assistant turn.
        few_shot_dataset_hf_args: rows that stand before each question as worked examples, in their order.
        max_length: most tokens of an example; it is an error if the whole answer is cut away.
        select: `{ratio, seed, complement}`: which rows to take, see `data.select`.
        reshape: how to make rows from the records, see `data.select.RESHAPES`.
    """
    keys = (question_key, answer_key)
    rows = chosen_rows(hf_args, context.data_root, keys, select, reshape)
    return Questions(context, rows, *keys, max_length, few_shot_dataset_hf_args).answered()


def qa_idk(
    context: Context,
    *,
    hf_args: Mapping[str, Any],
    question_key: str = "question",
    answer_key: str = "answer",
    few_shot_dataset_hf_args: Mapping[str, Any] | None = None,
    max_length: Count | None = 512,
    idk_path: str | None = None,
    return_original: bool = True,
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> Dataset:
    """Questions with their answers, and with "I don't know" lines as alternates.

    The arguments are those of `qa`, and two more. `idk_path` is a file of refusals; None = `idontknow.jsonl`
    beside the rows, else the next file that `refusals.refusal_lines` finds. If `return_original` is False,
    the refusals replace the answers (relabelling), and there are no alternates.
    """
    keys = (question_key, answer_key)
    rows = chosen_rows(hf_args, context.data_root, keys, select, reshape)
    asked = Questions(context, rows, *keys, max_length, few_shot_dataset_hf_args)
    lines = refusal_lines(idk_path, rows, context.data_root)
    return asked.with_others([drawn(lines, context.seed, row) for row in rows], return_original)


def qa_alternate(
    context: Context,
    *,
    hf_args: Mapping[str, Any],
    question_key: str = "question",
    answer_key: str = "answer",
    few_shot_dataset_hf_args: Mapping[str, Any] | None = None,
    max_length: Count | None = 512,
    alternate_key: str = "alternate",
    alternate_path: str | None = None,
    return_original: bool = True,
    select: Mapping[str, Any] | None = None,
    reshape: str | None = None,
) -> Dataset:
    """Questions with their answers, and with given alternates.

    The arguments are those of `qa`, and three more. `alternate_key` is the key of the alternate answer, in
    the row or in the entries of the file; from a list, one is drawn per (seed, row id). `alternate_path` is a
    file of alternates, matched by row `id` or question; None = the rows contain them. If `return_original` is
    False, the alternates replace the answers, and there are no alternates.
    """
    keys = (question_key, answer_key)
    read = (*keys, alternate_key) if alternate_path is None else keys
    rows = chosen_rows(hf_args, context.data_root, read, select, reshape)
    if alternate_path is None:
        others = [one_text(row.fields[alternate_key], context.seed, row, alternate_key) for row in rows]
    else:
        others = from_file(Path(alternate_path).expanduser(), rows, alternate_key, question_key, context.seed)
    asked = Questions(context, rows, *keys, max_length, few_shot_dataset_hf_args)
    return asked.with_others(others, return_original)


def text(
    context: Context,
    *,
    hf_args: Mapping[str, Any],
    text_key: str = "text",
    max_length: Count = 2048,
    join: str | None = "\n\n",
    select: Mapping[str, Any] | None = None,
) -> Dataset:
    """A corpus cut into pieces; all tokens of a piece except the first are labels.

    Args:
        context: name, template (only its tokenizer is used), data root, seed, switches (none applies).
        hf_args: source of the rows, see `load_rows`.
        text_key: key of the text.
        max_length: most tokens in a piece, BOS included.
        join: separator between the rows; the joined text is cut into pieces. None = each row is cut
            separately, so no piece contains text of two rows.
        select: `{ratio, seed, complement}`: which rows of the source to take, see `data.select`.

    Returns:
        A data set whose rows are the pieces; the id of a piece is the hash of its text.
    """
    source = chosen_rows(hf_args, context.data_root, (text_key,), select)
    texts = [str(row.fields[text_key]) for row in source]
    tokenizer = context.template.tokenizer
    pieces = [
        ids
        for whole in ([join.join(texts)] if join is not None else texts)
        for ids in text_chunks(tokenizer, whole, max_length)
    ]
    if not pieces:
        raise UserError(
            f"{source.source} contains no text to learn from", f"check the key {text_key!r} of its rows"
        )
    spoken = [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in pieces]
    fields: list[dict[str, Any]] = [{"text": words} for words in spoken]
    rows = source.having([Row(i, 0, row) for i, row in zip(row_ids(fields), fields, strict=True)])
    encoded = [
        encode_ids(ids, row_id=row.id, row=row.index, target_text=words)
        for ids, row, words in zip(pieces, rows, spoken, strict=True)
    ]
    return Dataset(context.name, rows, encoded, _identity(context, source, encoded, max_length))


def concatenate(name: str, datasets: Sequence[Dataset]) -> Dataset:
    """Join several data sets into one, in order.

    Rows are numbered again from 0. A row that occurs in two data sets gets `#k`, like any repeat. Alternates
    are kept if every part has them.
    """
    if not datasets:
        raise UserError(f"{name!r} names no data set", "name at least one data set")
    if len(datasets) == 1:
        return replace(datasets[0], name=name)
    rows = [row for part in datasets for row in part.rows]
    ids = number_repeats(row.id for row in rows)
    joined = [Row(row_id, 0, row.fields) for row_id, row in zip(ids, rows, strict=True)]
    row_set = RowSet.of(name, joined, " + ".join(part.rows.source for part in datasets))
    offsets = [sum(len(part.rows) for part in datasets[:number]) for number in range(len(datasets))]

    def moved(parts: Iterable[Sequence[Encoded]]) -> list[Encoded]:
        placed = [
            (offset + example.row, example)
            for offset, part in zip(offsets, parts, strict=True)
            for example in part
        ]
        return [replace(example, row=row, row_id=ids[row]) for row, example in placed]

    alternates = [part.alternates for part in datasets if part.alternates is not None]
    return Dataset(
        name,
        row_set,
        moved(part.encoded for part in datasets),
        fingerprint([part.fingerprint for part in datasets]),
        moved(alternates) if len(alternates) == len(datasets) else None,
    )


@dataclass(frozen=True)
class Questions:
    """Rows of questions and answers, and how they are encoded; `few_shot` is the source of examples."""

    context: Context
    rows: RowSet
    question_key: str
    answer_key: str
    max_length: int | None = 512
    few_shot: Mapping[str, Any] | None = None

    def answered(self) -> Dataset:
        """The questions with their own answers."""
        return self._dataset(self._encoded([row.fields[self.answer_key] for row in self.rows]))

    def with_others(self, others: Sequence[str], return_original: bool) -> Dataset:
        """Another answer for each row: as an alternate, or as its only answer if not `return_original`."""
        alternates = self._encoded(others)
        if not return_original:
            return self._dataset(alternates)
        return self._dataset(self.answered().encoded, alternates)

    @cached_property
    def _shots(self) -> list[Shot]:
        keys = (self.question_key, self.answer_key)
        rows = () if self.few_shot is None else load_rows(self.few_shot, self.context.data_root, keys)
        return [(question(row, keys[0]), answers_of(row, keys[1])[0]) for row in rows]

    def _encoded(self, answers: Sequence[Any]) -> list[Encoded]:
        how: dict[str, Any] = {"max_length": self.max_length, "switches": self.context.switches}
        asked = (self.rows, self.context.template, self.question_key, answers)
        return encode_rows(*asked, few_shot=self._shots, **how)

    def _dataset(self, encoded: list[Encoded], alternates: list[Encoded] | None = None) -> Dataset:
        made = _identity(self.context, self.rows, [*encoded, *(alternates or [])], self.max_length)
        return Dataset(self.context.name, self.rows, encoded, made, alternates)


def _identity(context: Context, rows: RowSet, encoded: Sequence[Encoded], max_length: int | None) -> str:
    """Hash of all that an example depends on; the tokens cover few-shot examples, keys and alternates."""
    tokens = [
        [example.row_id, example.input_ids, example.prompt_length, example.turn_end] for example in encoded
    ]
    return fingerprint(
        [rows.fingerprint, context.template.fingerprint, max_length, dict(context.switches), tokens]
    )
