"""The data sets of a configuration: `data.*.NAME = {handler, args}`.

A handler is a function `handler(context, *, hf_args, ...) -> Dataset`. The configuration names it as
`module:function`, so users can write their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.core.binding import Bound
from expunge.core.errors import UserError
from expunge.core.fingerprint import fingerprint
from expunge.core.ranges import Count
from expunge.data.alternate_answers import from_file, from_key
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.examples import answers_of, encode_answers, encode_rows, question
from expunge.data.refusals import drawn_refusals, refusal_lines
from expunge.data.rows import Row, RowSet, load_rows, number_repeats, row_ids
from expunge.data.select import chosen_rows
from expunge.data.template import Shot, Template

log = logging.getLogger(__name__)

__all__ = [
    "Context",
    "Dataset",
    "build_dataset",
    "concatenate",
    "encode_answers",
    "qa",
    "qa_alternate",
    "qa_idk",
    "text",
]


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
    """Build one data set of the configuration.

    Args:
        name: its key in the configuration.
        chosen: the handler with its arguments, see `config.datasets.bind_dataset`.
        template: template of the model.
        data_root: folder of local data sets.
        seed: seed of the run; draws of alternates depend only on it and on the row id.
        switches: `Config.switches("encode")`.

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
    rows = chosen_rows(hf_args, context.data_root, (question_key, answer_key), select, reshape)
    shots = _few_shot(context, few_shot_dataset_hf_args, question_key, answer_key)
    answers = [row.fields[answer_key] for row in rows]
    encoded = _encode(context, rows, question_key, answers, shots, max_length)
    return Dataset(context.name, rows, encoded, _identity(context, rows, encoded, max_length))


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

    Args:
        context: name, template, data root, seed, switches.
        hf_args: source of the rows, see `load_rows`.
        question_key: key of the user turn.
        answer_key: key of the assistant turn.
        few_shot_dataset_hf_args: worked examples before each question.
        max_length: most tokens of an example.
        idk_path: file of refusals; None = `idontknow.jsonl` beside the rows, else the next file that
            `refusals.refusal_lines` finds.
        return_original: False = the refusals replace the answers (relabelling), and there are no alternates.
        select: `{ratio, seed, complement}`: which rows to take, see `data.select`.
        reshape: how to make rows from the records, see `data.select.RESHAPES`.
    """
    rows = chosen_rows(hf_args, context.data_root, (question_key, answer_key), select, reshape)
    lines = refusal_lines(idk_path, rows, context.data_root)
    shots = _few_shot(context, few_shot_dataset_hf_args, question_key, answer_key)
    others = drawn_refusals(lines, rows, context.seed)
    return with_alternates(
        context, rows, question_key, answer_key, shots, max_length, others, return_original
    )


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

    Args:
        context: name, template, data root, seed, switches.
        hf_args: source of the rows, see `load_rows`.
        question_key: key of the user turn.
        answer_key: key of the assistant turn.
        few_shot_dataset_hf_args: worked examples before each question.
        max_length: most tokens of an example.
        alternate_key: key of the alternate answer, in the row or in the entries of the file; from a list, one
            is drawn per (seed, row id).
        alternate_path: a file of alternates, matched by row `id` or question; None = the rows contain them.
        return_original: False = the alternates replace the answers, and there are no alternates.
        select: `{ratio, seed, complement}`: which rows to take, see `data.select`.
        reshape: how to make rows from the records, see `data.select.RESHAPES`.
    """
    keys = (
        (question_key, answer_key)
        if alternate_path is not None
        else (question_key, answer_key, alternate_key)
    )
    rows = chosen_rows(hf_args, context.data_root, keys, select, reshape)
    shots = _few_shot(context, few_shot_dataset_hf_args, question_key, answer_key)
    if alternate_path is None:
        others = from_key(rows, alternate_key, context.seed)
    else:
        others = from_file(Path(alternate_path).expanduser(), rows, alternate_key, question_key, context.seed)
    return with_alternates(
        context, rows, question_key, answer_key, shots, max_length, others, return_original
    )


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
    rows = RowSet.of(
        source.name,
        [Row(i, 0, row) for i, row in zip(row_ids(fields), fields, strict=True)],
        source.source,
        source.file,
    )
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


def with_alternates(
    context: Context,
    rows: RowSet,
    question_key: str,
    answer_key: str,
    shots: Sequence[Shot],
    max_length: Count | None,
    others: Sequence[str],
    return_original: bool,
) -> Dataset:
    """Give each row another answer: as an alternate, or as its only answer if `return_original` is False."""
    alternates = _encode(context, rows, question_key, others, shots, max_length)
    if not return_original:
        return Dataset(context.name, rows, alternates, _identity(context, rows, alternates, max_length))
    encoded = _encode(
        context, rows, question_key, [row.fields[answer_key] for row in rows], shots, max_length
    )
    return Dataset(
        context.name, rows, encoded, _identity(context, rows, [*encoded, *alternates], max_length), alternates
    )


def _encode(
    context: Context,
    rows: RowSet,
    question_key: str,
    answers: Sequence[Any],
    shots: Sequence[Shot],
    max_length: Count | None,
) -> list[Encoded]:
    return encode_rows(
        rows,
        context.template,
        question_key,
        answers,
        few_shot=shots,
        max_length=max_length,
        switches=context.switches,
    )


def _few_shot(
    context: Context, hf_args: Mapping[str, Any] | None, question_key: str, answer_key: str
) -> tuple[Shot, ...]:
    if hf_args is None:
        return ()
    rows = load_rows(hf_args, context.data_root, (question_key, answer_key))
    return tuple((question(row, question_key), answers_of(row, answer_key)[0]) for row in rows)


def _identity(context: Context, rows: RowSet, encoded: Sequence[Encoded], max_length: Count | None) -> str:
    """Hash of all that an example depends on; the tokens cover few-shot examples, keys and alternates."""
    tokens = [
        [example.row_id, example.input_ids, example.prompt_length, example.turn_end] for example in encoded
    ]
    return fingerprint(
        [rows.fingerprint, context.template.fingerprint, max_length, dict(context.switches), tokens]
    )
