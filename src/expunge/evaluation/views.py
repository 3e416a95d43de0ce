"""Views: named sets of encoded rows that a suite reads, each with a fingerprint that is known before anything is encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.core.errors import Fault, UserError, unknown
from expunge.core.fingerprint import fingerprint
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.examples import encode_answers
from expunge.data.rows import RowSet, load_rows
from expunge.data.template import Template
from expunge.evaluation.tables import Examples, as_ints


@dataclass(frozen=True)
class ViewSpec:
    """What a suite says of a view.

    Attributes:
        hf_args: where the rows are, as for a dataset; a `name` or `path` of null means that there is no such view.
        question_key: key of the question.
        answer_key: key of the answer or answers.
        text_key: the rows are plain text under this key, without question and answer; they are joined and cut at `max_length`.
        max_length: tokens at most.
    """

    hf_args: Mapping[str, Any]
    question_key: str = "question"
    answer_key: str = "answer"
    text_key: str | None = None
    max_length: int | None = None

    @property
    def absent(self) -> str | None:
        """Why there is no such view, None where there is one."""
        empty = [key for key in ("path", "name") if key in self.hf_args and self.hf_args[key] is None]
        return f"its hf_args.{empty[0]} is null" if empty else None


def parse_views(views: Mapping[str, Any]) -> dict[str, ViewSpec]:
    """The views of a suite's configuration.

    Raises:
        UserError: unknown keys, or a view without `hf_args`; all together.
    """
    specs: dict[str, ViewSpec] = {}
    faults: list[Fault] = []
    known = list(ViewSpec.__dataclass_fields__)
    for name, node in views.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("hf_args"), Mapping):
            faults.append(Fault(f"the view {name!r} has no hf_args", "say where its rows are: hf_args: {path, name, split}"))
            continue
        wrong = [unknown(f"key of the view {name!r}", str(key), known) for key in node if key not in known]
        faults += wrong
        if not wrong:
            specs[name] = ViewSpec(**{str(key): value for key, value in node.items()})
    if faults:
        raise UserError.of(faults)
    return specs


@dataclass(frozen=True)
class View:
    """Rows with a template: encoded when somebody asks.

    Attributes:
        name: in the suite.
        spec: what the suite says of it.
        rows: the rows.
        template: of the model.
        switches: `encode` switches of `compat`.
    """

    name: str
    spec: ViewSpec
    rows: RowSet
    template: Template
    switches: Mapping[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the encoded rows depend on."""
        spec = {**asdict(self.spec), "hf_args": None}
        return fingerprint([self.rows.fingerprint, self.template.fingerprint, spec, dict(self.switches)])

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The examples, row after row, answer after answer."""
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
        # A text view's rows are its pieces, of which there may be fewer or more than rows of the file.
        ids = tuple(item.row_id for item in encoded) if self.spec.text_key is not None else self.rows.ids
        return examples_of(encoded, ids)

    def _chunks(self, key: str) -> list[Encoded]:
        text = "\n\n".join(str(row.fields.get(key, "")) for row in self.rows)
        if self.spec.max_length is None:
            raise UserError(f"the view {self.name!r} is plain text without max_length", "give the length to cut the text at")
        pieces = text_chunks(self.template.tokenizer, text, self.spec.max_length)
        return [encode_ids(ids, row_id=f"{self.rows.fingerprint}#{number}", row=number) for number, ids in enumerate(pieces)]

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
        }


def examples_of(encoded: Sequence[Encoded], row_ids: Sequence[str]) -> Examples:
    """The rows and answers of examples."""
    return Examples(
        tuple(row_ids),
        as_ints([item.row for item in encoded]),
        as_ints([item.answer_index for item in encoded]),
        tuple(item.target_text for item in encoded),
    )


def load_views(
    specs: Mapping[str, ViewSpec], names: Sequence[str], template: Template, data_root: Path | None, switches: Mapping[str, Any]
) -> dict[str, View]:
    """Read the rows of the views that are needed; rows that several views share are read once.

    Args:
        specs: of the suite.
        names: which are needed; absent ones are left out.
        template: of the model.
        data_root: folder of local data.
        switches: `encode` switches.

    Raises:
        UserError: rows that cannot be read, or lack a key; of all views together.
    """
    read: dict[str, RowSet] = {}
    views: dict[str, View] = {}
    faults: list[Fault] = []
    for name in names:
        spec = specs[name]
        if spec.absent:
            continue
        source = fingerprint(dict(spec.hf_args))
        try:
            if source not in read:
                read[source] = load_rows(spec.hf_args, data_root)
            views[name] = View(name, spec, read[source], template, switches)
        except UserError as error:
            faults += [Fault(f"view {name!r}: {fault.message}", fault.hint) for fault in error.faults]
    if faults:
        raise UserError.of(faults)
    return views
