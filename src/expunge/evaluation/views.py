"""Views: named sets of encoded rows that a suite reads, each with a fingerprint that is known before anything is encoded."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.core.errors import Fault, MissingDataError, MissingExtraError, UserError, unknown
from expunge.core.fingerprint import fingerprint
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.examples import encode_answers
from expunge.data.rows import RowSet
from expunge.data.select import chosen_rows
from expunge.data.template import Template
from expunge.evaluation.kinds import KINDS, harness_identity
from expunge.evaluation.tables import Examples, as_ints

log = logging.getLogger(__name__)
ANSWERS, HARNESS = "answers", "harness"
ANSWER_KEYS = ("question_key", "answer_key", "text_key")
COMMON_KEYS = ("kind", "hf_args", "local", "optional", "max_length", "select", "reshape")


@dataclass(frozen=True)
class ViewSpec:
    """What a suite says of a view.

    Attributes:
        hf_args: where the rows are, as for a dataset; a `name` or `path` of null means that there is no such
            view.
        question_key: key of the question.
        answer_key: key of the answer or answers.
        text_key: the rows are plain text under this key, without question and answer; they are joined and cut
            at `max_length`.
        max_length: tokens at most.
        kind: what is made of the rows: `answers`, one of `evaluation.kinds.KINDS`, or `harness` (no rows: a
            task of lm-eval).
        options: of the kind; a view of a kind but `answers` has these in the place of the three keys.
        local: files under the data root that are looked for first, in this order.
        optional: without its rows there is no such view, and what reads it is null with the reason.
        select: `{ratio, seed, complement}`: which of the rows, see `data.select`.
        reshape: what the rows are made of, see `data.select.RESHAPES`.
    """

    hf_args: Mapping[str, Any]
    question_key: str = "question"
    answer_key: str = "answer"
    text_key: str | None = None
    max_length: int | None = None
    kind: str = ANSWERS
    options: Mapping[str, Any] = field(default_factory=dict)
    local: Sequence[str] = ()
    optional: bool = False
    select: Mapping[str, Any] | None = None
    reshape: str | None = None

    @property
    def absent(self) -> str | None:
        """Why there is no such view, None where there is one."""
        empty = [
            key
            for key in ("path", "name")
            if key in self.hf_args and self.hf_args[key] is None and not self.local
        ]
        return f"its hf_args.{empty[0]} is null" if empty else None


def parse_views(views: Mapping[str, Any]) -> dict[str, ViewSpec]:
    """The views of a suite's configuration.

    Raises:
        UserError: unknown keys or kinds, or a view without `hf_args`; all together.
    """
    specs: dict[str, ViewSpec] = {}
    faults: list[Fault] = []
    for name, node in views.items():
        kind = node.get("kind", ANSWERS) if isinstance(node, Mapping) else ANSWERS
        if kind not in (ANSWERS, HARNESS, *KINDS):
            faults.append(unknown(f"kind of the view {name!r}", str(kind), [ANSWERS, HARNESS, *KINDS]))
            continue
        if not isinstance(node, Mapping) or (
            kind != HARNESS and not isinstance(node.get("hf_args"), Mapping)
        ):
            faults.append(
                Fault(
                    f"the view {name!r} has no hf_args",
                    "say where its rows are: hf_args: {path, name, split}",
                )
            )
            continue
        own = (
            ANSWER_KEYS
            if kind == ANSWERS
            else ("task", "include_path")
            if kind == HARNESS
            else _options(kind)
        )
        wrong = [
            unknown(f"key of the view {name!r}", str(key), [*COMMON_KEYS, *own])
            for key in node
            if key not in (*COMMON_KEYS, *own)
        ]
        faults += wrong
        if not wrong:
            common = {str(key): value for key, value in node.items() if key in COMMON_KEYS or kind == ANSWERS}
            options = (
                {} if kind == ANSWERS else {str(key): value for key, value in node.items() if key in own}
            )
            specs[name] = ViewSpec(**{"hf_args": {}, **common}, options=options)
    if faults:
        raise UserError.of(faults)
    return specs


def _options(kind: str) -> tuple[str, ...]:
    """What a view of a kind may say of it: the keyword-only parameters of its function."""
    return tuple(
        item.name
        for item in inspect.signature(KINDS[kind]).parameters.values()
        if item.kind is item.KEYWORD_ONLY
    )


@dataclass(frozen=True)
class View:
    """Rows with a template: encoded when somebody asks.

    Attributes:
        name: in the suite.
        spec: what the suite says of it.
        rows: the rows.
        template: of the model.
        switches: `encode` switches of `compat`.
        longest: tokens that the model takes at most, None = not known; only views of a kind but `answers`
            heed it.
    """

    name: str
    spec: ViewSpec
    rows: RowSet
    template: Template
    switches: Mapping[str, Any]
    longest: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the encoded rows depend on."""
        # Where the rows are from is no part of it: the rows are.
        spec = {**asdict(self.spec), "hf_args": None, "local": None}
        spec |= {"max_length": self.max_length}
        told = [self.rows.fingerprint, self.template.fingerprint, spec, dict(self.switches)]
        return fingerprint([*told, harness_identity()] if self.spec.kind == HARNESS else told)

    @property
    def max_length(self) -> int | None:
        """Tokens of an example at most."""
        known = [
            size
            for size in (self.spec.max_length, self.longest if self.spec.kind != ANSWERS else None)
            if size is not None
        ]
        return min(known) if known else None

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The examples, row after row, answer after answer."""
        if self.spec.kind == HARNESS:
            return []
        if self.spec.kind != ANSWERS:
            return KINDS[self.spec.kind](self.rows, self.template, self.max_length, **self.spec.options)
        if self.spec.text_key is not None:
            return self._chunks(self.spec.text_key)
        return encode_answers(
            self.rows,
            self.template,
            self.spec.question_key,
            self.spec.answer_key,
            max_length=self.spec.max_length,
            switches=self.switches,
        )

    @cached_property
    def examples(self) -> Examples:
        """Which rows and answers the examples are."""
        encoded = self.encoded
        # The rows of a view that cuts texts are its pieces, of which there may be fewer or more than rows of
        # the file.
        pieces = self.spec.text_key is not None or self.spec.kind != ANSWERS
        return examples_of(
            encoded, tuple(dict.fromkeys(item.row_id for item in encoded)) if pieces else self.rows.ids
        )

    def _chunks(self, key: str) -> list[Encoded]:
        text = "\n\n".join(str(row.fields.get(key, "")) for row in self.rows)
        if self.spec.max_length is None:
            raise UserError(
                f"the view {self.name!r} is plain text without max_length",
                "give the length to cut the text at",
            )
        pieces = text_chunks(self.template.tokenizer, text, self.spec.max_length)
        return [
            encode_ids(ids, row_id=f"{self.rows.fingerprint}#{number}", row=number)
            for number, ids in enumerate(pieces)
        ]

    def about(self) -> dict[str, Any]:
        """What is written of the view, so that another run's rows can be held against it."""
        return {
            "name": self.rows.name,
            "source": self.rows.source,
            "fingerprint": self.fingerprint,
            "rows": self.rows.fingerprint,
            "template": self.template.fingerprint,
            "question_key": self.spec.question_key,
            "answer_key": self.spec.answer_key,
            "row_ids": list(self.rows.ids),
            **(
                {"kind": self.spec.kind, "max_length": self.max_length, **self.spec.options}
                if self.spec.kind != ANSWERS
                else {}
            ),
        }


def examples_of(encoded: Sequence[Encoded], row_ids: Sequence[str]) -> Examples:
    """The rows and answers of examples."""
    return Examples(
        tuple(row_ids),
        as_ints([item.row for item in encoded]),
        as_ints([item.answer_index for item in encoded]),
        tuple(item.target_text for item in encoded),
    )


class Views(dict[str, View]):
    """The views that are there, by name.

    Attributes:
        missing: name -> why an optional view is not there, and where its file would go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.missing: dict[str, str] = {}


def load_views(
    specs: Mapping[str, ViewSpec],
    names: Sequence[str],
    template: Template,
    data_root: Path | None,
    switches: Mapping[str, Any],
    longest: int | None = None,
) -> Views:
    """Read the rows of the views that are needed; rows that several views share are read once.

    Args:
        specs: of the suite.
        names: which are needed; absent ones are left out.
        template: of the model.
        data_root: folder of local data.
        switches: `encode` switches.
        longest: tokens that the model takes at most.

    Raises:
        UserError: rows that cannot be read, or lack a key; of all views together. Optional views whose rows
            are nowhere, if that leaves nothing to score.
    """
    read: dict[str, RowSet | UserError] = {}
    views = Views()
    faults: list[Fault] = []
    nowhere: dict[Fault, list[str]] = {}
    for name in names:
        spec = specs[name]
        if spec.absent:
            continue
        rows = _read(spec, data_root, read)
        if isinstance(rows, RowSet):
            views[name] = View(name, spec, rows, template, switches, longest)
        elif spec.optional and isinstance(rows, MissingDataError | MissingExtraError):
            fault = _missing(spec, rows, data_root)
            nowhere.setdefault(fault, []).append(name)
            views.missing[name] = f"{fault.message}: {fault.hint}"
        else:
            faults += [Fault(f"view {name!r}: {fault.message}", fault.hint) for fault in rows.faults]
    if not faults and not views and nowhere:
        faults = [
            Fault(f"nothing to score for {', '.join(found)}: {fault.message}", fault.hint)
            for fault, found in nowhere.items()
        ]
        faults.append(
            Fault("no rows at all for this suite", "or leave it out: eval=[...] lists the suites of a run")
        )
    if faults:
        raise UserError.of(faults)
    return views


def _read(spec: ViewSpec, data_root: Path | None, read: dict[str, RowSet | UserError]) -> RowSet | UserError:
    """The rows of a view, or why there are none; once for equal sources, since the hub is slow to say no."""
    hf_args = _found(spec, data_root)
    source = fingerprint([hf_args, spec.select, spec.reshape])
    if source not in read:
        try:
            if spec.kind == HARNESS:
                read[source] = RowSet.of(str(spec.options.get("task")), (), "lm-eval")
            elif hf_args.get("path") is None and spec.local:
                read[source] = MissingDataError(f"none of {', '.join(spec.local)} is there")
            else:
                read[source] = rows = chosen_rows(hf_args, data_root, (), spec.select, spec.reshape)
                if spec.kind != ANSWERS:
                    log.info("%d rows of %s", len(rows), rows.source)
        except UserError as error:
            read[source] = error
    return read[source]


def _found(spec: ViewSpec, data_root: Path | None) -> dict[str, Any]:
    """Where to read: the first local file that is there, else what `hf_args` says."""
    named = str(spec.hf_args.get("path"))
    # A file that somebody named is the one that is meant.
    own = named.startswith((".", "/", "~")) or Path(named).is_file()
    places = [] if own or data_root is None else [data_root / name for name in spec.local]
    for place in places:
        if place.is_file():
            kept = {key: value for key, value in spec.hf_args.items() if key == "sample_by"}
            return {"path": str(place), **kept}
    return dict(spec.hf_args) if spec.kind != HARNESS else {"task": spec.options.get("task")}


def _missing(spec: ViewSpec, error: UserError, data_root: Path | None) -> Fault:
    """What is told of an optional view whose rows are nowhere, in one line."""
    wanted = "/".join(str(spec.hf_args[key]) for key in ("path", "name") if spec.hf_args.get(key))
    message = f"no rows of {wanted}" if wanted else "its text is not given"
    if spec.local:
        place = spec.local[0] if data_root is None else (data_root / spec.local[0]).absolute()
        root = (
            "set paths.data_root (or EXPUNGE_DATA) to your folder of data, and " if data_root is None else ""
        )
        return Fault(message, f"{root}put it into {place}")
    last = (error.faults[0].hint or error.faults[0].message).splitlines()[-1]
    return Fault(message, last.strip().removeprefix("or "))
