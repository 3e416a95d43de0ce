"""The subject of a collector, without a suite."""

from __future__ import annotations

from typing import Any

from expunge.evaluation.collect.collector import Subject


class WithPad:
    """A tokenizer with another pad token; without a tokenizer, one that only pads."""

    def __init__(self, pad_id: int, tokenizer: Any = None) -> None:
        self.pad_token_id, self.tokenizer = pad_id, tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def subject_of(model: Any, tokenizer: Any = None, pad_id: int = 0, **settings: Any) -> Subject:
    """A subject that pads with `pad_id`; `settings` are keys of the suite, and `compute_dtype`."""
    dtype = settings.pop("compute_dtype", None)
    return Subject(model, WithPad(pad_id, tokenizer), settings, dtype)
