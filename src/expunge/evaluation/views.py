"""Views: named sets of rows that a suite reads. Their fingerprints are known before they are encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from expunge.core.errors import Fault, UserError
from expunge.core.fingerprint import fingerprint
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.examples import encode_answers
from expunge.data.rows import RowSet
from expunge.data.template import Template
from expunge.evaluation.harness_views import HARNESS, harness_version
from expunge.evaluation.tables import Examples, as_ints
from expunge.evaluation.view_specs import ANSWERS, ViewSpec


@dataclass(frozen=True)
class View:
    """Rows with a template; they are encoded once, at first use.

    `switches` are the `encode` switches of `compat`. `longest` is the maximum number of tokens of the model
    (None = not known); views of kind `answers` ignore it.
    """

    name: str
    spec: ViewSpec
    rows: RowSet
    template: Template
    switches: Mapping[str, Any]
    longest: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the encoded rows depend on."""
        # It contains the rows, not their location.
        spec = {**asdict(self.spec), "hf_args": None, "local": None}
        spec |= {"max_length": self.max_length}
        depends = [self.rows.fingerprint, self.template.fingerprint, spec, dict(self.switches)]
        return fingerprint([*depends, harness_version()] if self.spec.kind == HARNESS else depends)

    @property
    def max_length(self) -> int | None:
        """Maximum number of tokens of an example."""
        longest = self.longest if self.spec.kind != ANSWERS else None
        return min((size for size in (self.spec.max_length, longest) if size is not None), default=None)

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The examples, row after row, answer after answer."""
        if self.spec.kind == HARNESS:
            return []
        if self.spec.kind != ANSWERS:
            return self.spec.build(self.rows, self.template, self.max_length, **self.spec.options)
        if self.spec.text_key is not None:
            return self._chunks(self.spec.text_key)
        keys, longest = (self.spec.question_key, self.spec.answer_key), self.spec.max_length
        return encode_answers(self.rows, self.template, *keys, max_length=longest, switches=self.switches)

    @cached_property
    def examples(self) -> Examples:
        """The rows and answers of the examples."""
        encoded = self.encoded
        # If a view cuts texts, its rows are the pieces; their number differs from that of the file's rows.
        pieces = self.spec.text_key is not None or self.spec.kind != ANSWERS
        ids = dict.fromkeys(item.row_id for item in encoded) if pieces else self.rows.ids
        return examples_of(encoded, tuple(ids))

    def _chunks(self, key: str) -> list[Encoded]:
        text = "\n\n".join(str(row.fields.get(key, "")) for row in self.rows)
        if self.spec.max_length is None:
            raise UserError(
                f"the view {self.name!r} is plain text and has no max_length",
                "give max_length, the number of tokens of a piece",
            )
        pieces = text_chunks(self.template.tokenizer, text, self.spec.max_length)
        return [
            encode_ids(ids, row_id=f"{self.rows.fingerprint}#{number}", row=number)
            for number, ids in enumerate(pieces)
        ]

    def within(self, longest: int | None) -> View:
        """The view for a model with this maximum of tokens; the same view if that changes nothing."""
        fitted = replace(self, longest=longest)
        return self if fitted.max_length == self.max_length else fitted

    def about(self) -> dict[str, Any]:
        """What the result files say of the view, for comparisons with other runs."""
        own = {"kind": self.spec.kind, "max_length": self.max_length, **self.spec.options}
        return {
            "name": self.rows.name,
            "source": self.rows.source,
            "fingerprint": self.fingerprint,
            "rows": self.rows.fingerprint,
            "template": self.template.fingerprint,
            "question_key": self.spec.question_key,
            "answer_key": self.spec.answer_key,
            "row_ids": list(self.rows.ids),
            **(own if self.spec.kind != ANSWERS else {}),
        }


def examples_of(encoded: Sequence[Encoded], row_ids: Sequence[str]) -> Examples:
    """The rows and answers of examples."""
    rows, answers = [item.row for item in encoded], [item.answer_index for item in encoded]
    texts = tuple(item.target_text for item in encoded)
    return Examples(tuple(row_ids), as_ints(rows), as_ints(answers), texts)


class Views(dict[str, View]):
    """The views that exist, by name.

    Attributes:
        missing: name -> why an optional view is missing, and where to put its file.
    """

    def __init__(
        self, views: Mapping[str, View] | None = None, missing: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(views or {})
        self.missing: dict[str, str] = dict(missing or {})

    def within(self, longest: int | None) -> Views:
        """The views for a model with this maximum of tokens; unchanged views stay encoded."""
        return Views({name: view.within(longest) for name, view in self.items()}, self.missing)

    def encode(self) -> None:
        """Encode every view, to find rows that lack a key or whose answer is cut away.

        Raises:
            UserError: the faulty rows of all views, together.
        """
        faults: list[Fault] = []
        for view in self.values():
            try:
                _ = view.encoded
            except UserError as error:
                faults += [fault for fault in error.faults if fault not in faults]
        if faults:
            raise UserError.of(faults)
