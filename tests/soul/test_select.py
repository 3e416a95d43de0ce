from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.config.datasets import bind_dataset
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.data import datasets
from expunge.data.rows import load_rows
from expunge.data.select import Selection, chosen_rows, select_rows
from expunge.data.template import Template


@pytest.fixture
def rows(tmp_path: Path, write_rows: Any) -> Any:
    return load_rows(
        {
            "path": str(
                write_rows(
                    tmp_path / "r.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(10)]
                )
            )
        }
    )


def build_dataset(name: str, node: Any, *args: Any, **more: Any) -> datasets.Dataset:
    """The dataset of a configuration's {handler, args}."""
    chosen = bound_alone(bind_dataset, f"data.forget.{name}", node)[f"data.forget.{name}.args"]
    return datasets.build_dataset(name, chosen, *args, **more)


def test_a_selection_and_its_complement_are_the_whole(rows: Any) -> None:
    part = select_rows(rows, {"ratio": 4, "seed": 1})
    rest = select_rows(rows, {"ratio": 4, "seed": 1, "complement": True})
    assert (len(part), len(rest)) == (4, 6)
    assert set(part.ids) | set(rest.ids) == set(rows.ids)
    assert [row.index for row in part] == [0, 1, 2, 3]
    by_id = {row.id: row.fields for row in rows}
    assert all(by_id[row.id] == row.fields for row in (*part, *rest))


def test_rows_keep_their_order_and_ids_with_repeats(tmp_path: Path, write_rows: Any) -> None:
    same = write_rows(tmp_path / "same.jsonl", [{"question": "q", "answer": "a"}] * 3)
    whole = load_rows({"path": str(same)})
    part = select_rows(whole, {"ratio": 2, "seed": 0})
    kept = Selection(2.0, 0).positions(3)
    assert part.ids == tuple(whole.ids[position] for position in kept)
    assert kept == sorted(kept)


def test_only_the_seed_and_the_number_of_rows_decide(rows: Any) -> None:
    import torch

    first = Selection(4.0, 0).positions(10)
    torch.manual_seed(99)
    torch.rand(7)
    assert Selection(4.0, 0).positions(10) == first
    assert len({tuple(Selection(4.0, seed).positions(10)) for seed in range(20)}) > 10


def test_shares_are_rounded_down_and_one_is_all(rows: Any) -> None:
    # .29 * 100 = 28.999999999999996 in floating point.
    assert Selection(0.29).count(100) == 29
    assert Selection(0.25).count(10) == 2
    assert select_rows(rows, {"ratio": 1}).fingerprint == rows.fingerprint
    assert select_rows(rows, {"ratio": 10}).fingerprint == rows.fingerprint


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ({"ratio": 11}, "requests 11 rows, but .* has only 10"),
        ({"ratio": 1, "complement": True}, "complement of all rows .* is empty"),
        ({"ratio": 0.05}, "is empty"),
        ({"ratio": 2.5}, "whole number"),
        ({"ratio": 0}, "above 0"),
        ({"ratio": "all"}, "give a count"),
        ({"share": 0.5}, "unknown key of select 'share'"),
        ({"seed": 0.5}, "whole number"),
        ({"complement": 1}, "true or false"),
    ],
)
def test_what_is_refused(rows: Any, select: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        select_rows(rows, select)


def test_unsafe_answers_become_rows(tmp_path: Path, write_rows: Any) -> None:
    records: list[dict[str, object]] = [
        {
            "prompt": "p0",
            "response_0": "bad",
            "is_response_0_safe": False,
            "response_1": "worse",
            "is_response_1_safe": False,
        },
        {
            "prompt": "p1",
            "response_0": "good",
            "is_response_0_safe": True,
            "response_1": "bad",
            "is_response_1_safe": False,
        },
        {
            "prompt": "p2",
            "response_0": "good",
            "is_response_0_safe": True,
            "response_1": "fine",
            "is_response_1_safe": True,
        },
    ]
    path = write_rows(tmp_path / "pku.jsonl", records)
    found = chosen_rows({"path": str(path)}, None, ("prompt", "response"), reshape="unsafe_answers")
    assert [tuple(row.fields.values()) for row in found] == [("p0", "bad"), ("p0", "worse"), ("p1", "bad")]
    assert len(set(found.ids)) == 3
    with pytest.raises(UserError, match="did you mean 'unsafe_answers'"):
        chosen_rows({"path": str(path)}, None, ("prompt", "response"), reshape="unsafe_answer")
    write_rows(path, records[2:])
    with pytest.raises(UserError, match=r"no answer .* is unsafe"):
        chosen_rows({"path": str(path)}, None, ("prompt", "response"), reshape="unsafe_answers")


def test_folders_of_save_to_disk(tmp_path: Path, write_rows: Any) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]})
    other = datasets.Dataset.from_dict({"question": ["r", "s"], "answer": ["b", "c"]})
    part.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"forget": part, "retain": other}).save_to_disk(tmp_path / "two")
    assert [row.fields["answer"] for row in load_rows({"path": str(tmp_path / "one")})] == ["a"]
    assert [
        row.fields["answer"] for row in load_rows({"path": str(tmp_path / "two"), "split": "retain"})
    ] == ["b", "c"]
    assert (
        load_rows({"path": str(tmp_path / "two"), "split": "retain[:1]"}).ids
        == load_rows({"path": str(write_rows(tmp_path / "x.jsonl", [{"question": "r", "answer": "b"}]))}).ids
    )
    with pytest.raises(UserError, match=r"unknown split .*'retian'"):
        load_rows({"path": str(tmp_path / "two"), "split": "retian"})
    with pytest.raises(UserError, match="no split 'retain'"):
        load_rows({"path": str(tmp_path / "one"), "split": "retain"})


def test_handlers_select(tmp_path: Path, tiny_tokenizer: Any, write_rows: Any) -> None:
    path = str(
        write_rows(
            tmp_path / "q.jsonl",
            [{"question": f"q{i}", "answer": f"a{i}", "text": f"text {i}"} for i in range(8)],
        )
    )
    template = Template.from_args({}, tiny_tokenizer)
    select = {"ratio": 3, "seed": 5}
    expected = select_rows(load_rows({"path": path}), select).ids
    (tmp_path / "idk.txt").write_text("I don't know.\n")
    for handler, more in (
        ("qa", {}),
        ("qa_idk", {"idk_path": str(tmp_path / "idk.txt")}),
        ("qa_alternate", {"alternate_key": "text"}),
    ):
        args = {"hf_args": {"path": path}, "select": select, **more}
        built = build_dataset("D", {"handler": f"expunge.data.datasets:{handler}", "args": args}, template)
        assert built.rows.ids == expected
        assert len(built) == 3
    texts = build_dataset(
        "D",
        {
            "handler": "PretrainingDataset",
            "args": {"hf_args": {"path": path}, "select": select, "join": None},
        },
        template,
    )
    assert len(texts) == 3


def test_random_labels_are_answers_to_other_questions(
    tmp_path: Path, tiny_tokenizer: Any, write_rows: Any
) -> None:
    forget = str(
        write_rows(tmp_path / "f.jsonl", [{"question": f"q{i}", "answer": f"own {i}"} for i in range(6)])
    )
    retain = str(
        write_rows(tmp_path / "r.jsonl", [{"prompt": f"p{i}", "response": f"other {i}"} for i in range(5)])
    )
    template = Template.from_args({}, tiny_tokenizer)
    answers = {
        "R": {
            "args": {
                "hf_args": {"path": retain},
                "question_key": "prompt",
                "answer_key": "response",
                "select": {"ratio": 2},
            }
        }
    }
    args = {"hf_args": {"path": forget}, "answers": answers}
    spec = {"handler": "expunge.data.random_labels:qa_random_labels", "args": args}
    built = build_dataset("F", spec, template, seed=1)
    assert built.alternates is not None
    allowed = {row.fields["response"] for row in select_rows(load_rows({"path": retain}), {"ratio": 2})}
    assert {example.target_text for example in built.alternates} == allowed
    assert [example.target_text for example in built.encoded] == [f"own {i}" for i in range(6)]
    # A whole row: the alternate shares the prompt, and its labels end with the turn's end.
    for own, other in zip(built.encoded, built.alternates, strict=True):
        assert own.input_ids[: own.prompt_length] == other.input_ids[: other.prompt_length]
        assert other.turn_end == len(other.input_ids) - 1
    again = build_dataset("F", spec, template, seed=1)
    assert [e.target_text for e in again.alternates or []] == [e.target_text for e in built.alternates]
    texts = {"R": {"args": {"hf_args": {"path": retain}, "text_key": "text"}}}
    with pytest.raises(UserError, match="has no answers to draw from"):
        build_dataset("F", {**spec, "args": {**args, "answers": texts}}, template)
