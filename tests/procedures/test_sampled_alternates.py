"""Alternates for AltPO: sampled from a model and written to a file that the data set of the method reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.data.alternate_answers import from_file
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.procedures.sampled_alternates import sample_alternates


@pytest.fixture
def rows() -> RowSet:
    return RowSet.of(
        "forget",
        [Row(f"id{n}", n, {"question": f"Who is author {n}?", "answer": "Ada Quill."}) for n in range(3)],
        "test",
    )


@pytest.fixture
def sampled(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    model, template = tiny_model(seed=1), Template.from_args({}, tiny_tokenizer)
    return lambda rows, **settings: sample_alternates(
        model, template, rows, **{"max_new_tokens": 6, "count": 3, **settings}
    )


def test_each_row_gets_several_answers_that_differ_from_its_own(sampled: Any, rows: RowSet):
    found = sampled(rows)
    assert [entry["id"] for entry in found] == ["id0", "id1", "id2"]
    assert all(1 <= len(entry["alternate"]) <= 3 for entry in found)
    assert all(text and text != "Ada Quill." for entry in found for text in entry["alternate"])


def test_the_same_seed_gives_the_same_answers_and_keeps_the_random_state(sampled: Any, rows: RowSet):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = sampled(rows, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert sampled(rows, seed=1) == first
    assert sampled(rows, seed=2) != first


def test_the_file_is_matched_by_row_ids_and_refused_for_other_rows(
    sampled: Any, rows: RowSet, tmp_path: Path
):
    path = tmp_path / "alternates.json"
    write_json(path, sampled(rows))
    texts = from_file(path, rows, "alternate", "question", 0)
    assert all(text in entry["alternate"] for text, entry in zip(texts, read_json(path), strict=True))
    fewer = RowSet.of("forget", list(rows)[:2], "test")
    with pytest.raises(
        UserError, match=r"made for other rows: 1 entries belong to other rows \(first: 'id2'\)"
    ):
        from_file(path, fewer, "alternate", "question", 0)


def test_invalid_settings_and_missing_alternates_are_reported(
    sampled: Any, rows: RowSet, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError, match="count=0"):
        sampled(rows, count=0)
    with pytest.raises(UserError, match="no text under 'reply'"):
        sampled(rows, answer_key="reply")
    monkeypatch.setattr(
        "expunge.procedures.sampled_alternates._sampled", lambda *_: ["Ada Quill.", "", " "] * 3
    )
    with pytest.raises(UserError, match="no other answer to 3 of 3"):
        sampled(rows)
