"""Views: named sets of encoded rows that a suite reads, each with a fingerprint that is known before anything is encoded."""

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
    """Rows with a template: encoded once, when somebody asks.

    Attributes:
        name: in the suite.
        spec: what the suite says of it.
        rows: the rows.
        template: of the model.
        switches: `encode` switches of `compat`.
        longest: tokens that the model takes at most, None = not known; views of the kind `answers` ignore it.
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
        depends = [self.rows.fingerprint, self.template.fingerprint, spec, dict(self.switches)]
        return fingerprint([*depends, harness_version()] if self.spec.kind == HARNESS else depends)

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
            return self.spec.build(self.rows, self.template, self.max_length, **self.spec.options)
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

    def within(self, longest: int | None) -> View:
        """The view for a model that takes so many tokens: itself, with its examples, where that changes nothing."""
        fitted = replace(self, longest=longest)
        return self if fitted.max_length == self.max_length else fitted

    def about(self) -> dict[str, Any]:
        """What is written of the view, so that another run's rows can be compared with it."""
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

    def __init__(
        self, views: Mapping[str, View] | None = None, missing: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(views or {})
        self.missing: dict[str, str] = dict(missing or {})

    def within(self, longest: int | None) -> Views:
        """The views for a model that takes so many tokens; what that does not change stays encoded."""
        return Views({name: view.within(longest) for name, view in self.items()}, self.missing)

    def encode(self) -> None:
        """Encode every view, which finds rows that lack a key, or whose answer is cut away.

        Raises:
            UserError: faulty rows; of all views together.
        """
        faults: list[Fault] = []
        for view in self.values():
            try:
                _ = view.encoded
            except UserError as error:
                faults += [fault for fault in error.faults if fault not in faults]
        if faults:
            raise UserError.of(faults)
