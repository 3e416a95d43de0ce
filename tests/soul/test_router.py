from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.config.local_data import local_file
from expunge.config.location import choices, config_roots
from expunge.core.errors import UserError
from expunge.soul.router import DOMAINS, NAMES, local, route
from expunge.soul.writing import assign, written


@pytest.mark.parametrize("side", ["forget", "retain"])
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_choice(name: str, side: str, data_root: Path) -> None:
    routed = route(name, side, str(data_root))  # type: ignore[arg-type]
    assert routed is not None
    assert set(routed.choices) <= set(choices(config_roots(), "data/datasets"))


def test_names_are_translated_to_choices(data_root: Path) -> None:
    tofu = route("Tofu_forget05", "forget")
    assert tofu is not None
    assert (tofu.choices, tofu.root, tofu.texts) == (["TOFU_QA_forget"], {"forget_split": "forget05"}, False)
    retain = route("Tofu_forget05", "retain")
    assert retain is not None
    assert (retain.choices, retain.root) == (["TOFU_QA_retain"], {"retain_split": "forget05"})
    everything = route("WMDPALL", "retain")
    assert everything is not None
    assert everything.choices == ["WMDP_bio_retain", "WMDP_cyber_retain"]
    assert "no corpus for chemistry" in everything.notices[0]
    assert set(DOMAINS) == {"WMDPCyber", "WMDPBio", "WMDPChem", "WMDPALL"}
    assert route("none", "retain") is None


def test_a_book_is_questions_or_passages(data_root: Path, write_rows: Any) -> None:
    write_rows(data_root / "hp" / "hp.jsonl", [{"text": "a passage"}])
    passages = route("HP", "forget", str(data_root))
    assert passages is not None
    assert (passages.choices, passages.texts) == (["HP_text"], True)
    write_rows(data_root / "hp" / "hp_qa.jsonl", [{"prompt": "q", "response": "a"}])
    questions = route("HP", "forget", str(data_root))
    assert questions is not None
    assert (questions.choices, questions.texts) == (["HP_QA"], False)


@pytest.mark.parametrize(
    ("name", "content", "choice", "keys"),
    [
        ("a.jsonl", '{"question": "q", "answer": "a"}\n', "LOCAL_QA", None),
        ("b.json", '[\n  {"prompt": "q",\n   "response": "a"}\n]', "LOCAL_QA", ("prompt", "response")),
        ("c.json", '{"instruction": ["q"], "output": ["a"]}', "LOCAL_QA", ("instruction", "output")),
        ("d.csv", 'question,answer\n"q, r",a\n', "LOCAL_QA", None),
        ("e.tsv", "text\tmore\nx\ty\n", "LOCAL_text", None),
        ("f.txt", "once upon a time\n", "LOCAL_text", None),
        ("g.jsonl", '"a text"\n"another"\n', "LOCAL_text", None),
    ],
)
def test_local_files_are_recognised_by_their_columns(
    name: str, content: str, choice: str, keys: tuple[str, str] | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)
    routed = local(str(path), "forget")
    assert routed.choices == [choice]
    assert routed.texts == (choice == "LOCAL_text")
    asked = (routed.values.get("args.question_key"), routed.values.get("args.answer_key"))
    assert asked == (keys or (None, None))
    assert routed.values["args.hf_args.path"] == str(path)


def test_parquet_and_saved_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["q"], "response": ["a"]})
    rows.to_parquet(tmp_path / "rows.parquet")
    assert local(str(tmp_path / "rows.parquet"), "forget").values["args.question_key"] == "prompt"
    rows.save_to_disk(tmp_path / "one")
    assert "args.hf_args.split" not in local(str(tmp_path / "one"), "forget").values
    texts = datasets.Dataset.from_dict({"text": ["x"]})
    datasets.DatasetDict({"forget": texts, "retain": texts}).save_to_disk(tmp_path / "several")
    routed = route("WMDPCyber", "retain", custom_split_path=str(tmp_path / "several"))
    assert routed is not None
    assert (routed.choices, routed.values["args.hf_args.split"]) == (["LOCAL_text"], "retain")


def test_unknown_columns_and_folders_are_refused(tmp_path: Path, write_rows: Any) -> None:
    path = write_rows(tmp_path / "odd.jsonl", [{"left": 1, "right": 2}])
    with pytest.raises(UserError, match="its columns: left, right"):
        local(str(path), "forget")
    with pytest.raises(UserError, match="save_to_disk"):
        local(str(tmp_path), "forget")


def test_the_local_copies_that_the_yamls_name_are_found(tmp_path: Path, write_rows: Any) -> None:
    for path in (
        "wmdp-corpora/bio-forget-corpus.jsonl",
        "pku-saferlhf/train.jsonl",
        "c4/train.jsonl",
        "wikitext/wikitext-2-raw-v1.jsonl",
    ):
        write_rows(tmp_path / path, [{"text": "x"}])
    wanted = {
        "WMDP_bio_forget": {"path": "cais/wmdp-corpora", "name": "bio-forget-corpus", "split": "train"},
        "SafePku": {"path": "PKU-Alignment/PKU-SafeRLHF", "split": "train"},
        "C4": {"path": "allenai/c4", "split": "train"},
        "wikitext": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": "train"},
    }
    for choice, hf_args in wanted.items():
        text = choices(config_roots(), "data/datasets")[choice].read_text()
        assert all(f": {value}\n" in text for value in hf_args.values())
        assert local_file(hf_args, tmp_path) is not None


@pytest.mark.parametrize(
    "value",
    [
        "GA+FT",
        "2024",
        "true",
        "a b",
        'say "no"',
        "./x/y.json",
        "/a/b-c",
        "x=1,y",
        "1e-4",
        "",
        "~/m",
        "{a}",
        ".cache",
    ],
)
def test_texts_survive_the_grammar_of_overrides(value: str) -> None:
    from expunge.config.overrides import sort_overrides

    (typed,) = sort_overrides([assign("task_name", value)], config_roots()).values
    assert typed.value == value


def test_other_values_survive_it_too() -> None:
    from expunge.config.overrides import sort_overrides

    value = {"ratio": 0.5, "seed": 3, "complement": True, "names": ["a", "b c"], "none": None}
    (typed,) = sort_overrides([assign("task_name", value)], config_roots()).values
    assert typed.value == value
    assert json.loads(written(5e-06)) == 5e-06
