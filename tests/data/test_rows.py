"""Rows: formats by content, places, ids, and messages for missing data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from expunge.core.errors import MissingExtraError, UserError
from expunge.data.formats import read_fields, read_lines
from expunge.data.rows import load_rows

ROWS = [
    {"question": "Who?", "answer": "Ada."},
    {"question": "Where?", "answer": "Port Verdant."},
    {"question": "Who?", "answer": "Ada."},
]
LINES = "\n".join(json.dumps(row) for row in ROWS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tofu"
    folder.mkdir()
    (folder / "forget10.json").write_text(LINES)
    (folder / "retain90.jsonl").write_text(json.dumps({"question": "When?", "answer": "1952."}))
    return tmp_path


def test_the_same_rows_in_every_format_have_the_same_ids_and_fingerprint(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "lines.json").write_text(LINES)
    (tmp_path / "array.jsonl").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "columns.json").write_text(
        json.dumps({key: [row[key] for row in ROWS] for key in ("question", "answer")})
    )
    (tmp_path / "cells.csv").write_text("question,answer\nWho?,Ada.\nWhere?,Port Verdant.\nWho?,Ada.\n")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "table.parquet")
    sets = [load_rows({"path": str(path)}) for path in sorted(tmp_path.iterdir())]
    assert len(sets) == 5
    assert len({(rows.ids, rows.fingerprint) for rows in sets}) == 1
    assert [dict(row.fields) for row in sets[0]] == ROWS


def test_id_is_the_hash_of_question_and_answer_and_repeats_are_numbered(root: Path) -> None:
    rows = load_rows({"path": "locuslab/TOFU", "name": "forget10", "split": "train"}, root)
    first = hashlib.sha256(b'["Who?", "Ada."]').hexdigest()[:16]
    assert rows.ids[0] == first
    assert rows.ids[2] == f"{first}#1"
    assert rows.ids[1] not in (first, f"{first}#1")
    assert [row.index for row in rows] == [0, 1, 2]


def test_other_keys_of_a_row_change_the_fingerprint_but_not_the_id(tmp_path: Path) -> None:
    for name, extra in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{**ROWS[0], "paraphrased_answer": extra}]))
    a, b = (load_rows({"path": str(tmp_path / f"{name}.json")}) for name in "ab")
    assert a.ids == b.ids
    assert a.fingerprint != b.fingerprint


def test_keys_serve_as_question_and_answer_where_a_row_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"query": "Who?", "reply": "Ada.", "level": 1}]))
    rows = load_rows({"path": str(tmp_path / "a.json")}, keys=("query", "reply"))
    assert rows.ids == (hashlib.sha256(b'["Who?", "Ada."]').hexdigest()[:16],)


@pytest.mark.parametrize(
    ("split", "kept"),
    [
        ("train", [0, 1, 2]),
        ("train[:1]", [0]),
        ("train[1:]", [1, 2]),
        ("train[-1:]", [2]),
        ("train[:67%]", [0, 1]),
    ],
)
def test_a_slice_keeps_ids(root: Path, split: str, kept: list[int]) -> None:
    args = {"path": "locuslab/TOFU", "name": "forget10"}
    whole, part = load_rows(args, root), load_rows({**args, "split": split}, root)
    assert part.ids == tuple(whole.ids[index] for index in kept)
    assert [row.index for row in part] == list(range(len(kept)))


def test_builders_with_data_files_and_other_splits(root: Path) -> None:
    (root / "idk.txt").write_text("I don't know.\n\nNo idea.\n")
    assert [row.fields for row in load_rows({"path": "text", "data_files": "idk.txt"}, root)] == [
        {"text": "I don't know."},
        {"text": "No idea."},
    ]
    assert (
        len(
            load_rows(
                {"path": "text", "data_files": {"train": [str(root / "idk.txt")]}, "sample_by": "document"},
                root,
            )
        )
        == 1
    )
    assert (
        len(load_rows({"path": "json", "data_files": ["tofu/forget10.json", "tofu/retain90.jsonl"]}, root))
        == 4
    )
    (root / "muse-news" / "knowmem").mkdir(parents=True)
    (root / "muse-news" / "knowmem" / "retain_qa.json").write_text(LINES)
    assert (
        len(load_rows({"path": "muse-bench/MUSE-News", "name": "knowmem", "split": "retain_qa"}, root)) == 3
    )
    assert len(load_rows({"path": str(root / "tofu"), "name": "forget10"})) == 3


def test_another_split_does_not_use_the_train_file(root: Path) -> None:
    with pytest.raises(UserError, match="forget10/test"):
        load_rows({"path": str(root / "tofu"), "name": "forget10", "split": "test"})


def test_missing_split_names_near_match_places_and_target(root: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_rows({"path": "locuslab/TOFU", "name": "forget1O"}, root)
    message = str(caught.value)
    assert "did you mean 'forget10'?" in message
    assert "available: forget10, retain90" in message
    assert str(root / "tofu" / "forget1O") + ".{json,jsonl,csv,parquet,txt}" in message
    assert f"into {root / 'tofu' / 'forget1O.json'}" in message


def test_missing_data_set_offline_says_where_it_looked_and_that_the_hub_was_asked(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(UserError) as caught:
        load_rows({"path": "nobody/NoSuchSet", "name": "part"}, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "nosuchset" / "part") in message
    assert "the hub:" in message
    assert f"into {tmp_path / 'nosuchset' / 'part.json'}" in message


def test_without_the_package_datasets_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"expunge\[hub\]"):
        load_rows({"path": "nobody/NoSuchSet", "name": "part"}, tmp_path)


def test_hub_rows_get_the_same_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    datasets = pytest.importorskip("datasets")
    asked = {}

    def fake(path: str, **kwargs: object) -> list[dict[str, str]]:
        asked.update(kwargs, path=path)
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", fake)
    args = {"path": "locuslab/TOFU", "name": "forget10", "split": "train[:2]", "revision": "main"}
    rows = load_rows(args, tmp_path / "elsewhere")
    assert asked == {
        "path": "locuslab/TOFU",
        "name": "forget10",
        "split": "train",
        "revision": "main",
        "data_files": None,
    }
    assert rows.ids == load_rows({**args, "split": "train"}, root).ids[:2]
    assert rows.file is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ('{"question": "Who?"}\n{"question": broken}', "line 2"),
        ('[{"question": "Who?"}, 3]', "row 1"),
        ('{"question": "Who?", ', "not valid JSON"),
    ],
)
def test_damaged_or_empty_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_rows({"path": str(tmp_path / "bad.json")})


def test_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="neither parquet nor UTF-8"):
        load_rows({"path": str(tmp_path / "a.json")})
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but cut off")
    with pytest.raises(UserError, match="damaged"):
        load_rows({"path": str(tmp_path / "a.parquet")})


def test_rows_without_a_key_are_reported_together_by_number(tmp_path: Path) -> None:
    rows = [ROWS[0], {"question": "What?"}, ROWS[1], *({"answer": "So."} for _ in range(7))]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        load_rows({"path": str(tmp_path / "a.json")}, keys=("question", "answer"))
    message = str(caught.value)
    assert "row 1 (counting from 0)" in message
    assert "no 'answer'; it has: question" in message
    assert "row 3 (counting from 0)" in message
    assert "and 3 more rows" in message
    assert "answer_key" in message


@pytest.mark.parametrize("split", ["train[9:]", "train+test", "train[a:b]"])
def test_a_split_that_keeps_nothing_or_cannot_be_read(root: Path, split: str) -> None:
    with pytest.raises(UserError, match=r"keeps none|cannot be read"):
        load_rows({"path": "locuslab/TOFU", "name": "forget10", "split": split}, root)


def test_missing_path_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no 'path'"):
        load_rows({"name": "forget10"})
    with pytest.raises(UserError, match=r"looked for\n.*gone\.json"):
        load_rows({"path": str(tmp_path / "gone.json")})
    with pytest.raises(
        UserError, match=r"the file 'gone.json' of data_files does not exist; looked for .*gone"
    ):
        load_rows({"path": "json", "data_files": "gone.json"}, tmp_path)


def test_csv_with_too_many_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nWho?,Ada, of Port Verdant\n")
    with pytest.raises(UserError, match="more cells than the header"):
        read_fields(tmp_path / "a.csv")


def test_refusal_lines_from_text_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("I don't know.\nNo idea.")
    (tmp_path / "b.csv").write_text("Refusal Response\n\"I'm sorry, I can't.\"\nNo, I do not know.\n")
    (tmp_path / "c.json").write_text('["I don\'t know.", "No idea."]')
    assert read_lines(tmp_path / "a.jsonl") == ["I don't know.", "No idea."]
    assert read_lines(tmp_path / "b.csv") == ["I'm sorry, I can't.", "No, I do not know."]
    assert read_lines(tmp_path / "c.json") == ["I don't know.", "No idea."]


def test_mini_is_found_by_its_path() -> None:
    rows = load_rows(
        {"path": "expunge/mini", "name": "forget10", "split": "train"}, None, ("question", "answer")
    )
    assert len(rows) > 0
    with pytest.raises(UserError, match="did you mean 'forget10'"):
        load_rows({"path": "expunge/mini", "name": "forget1O"})
