"""TOFU on the real files: counts, the order of the splits, and label spans under three templates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from expunge.config.datasets import bind_dataset
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.data.datasets import build_dataset
from expunge.data.examples import encode_answers
from expunge.data.pairs import check_disjoint
from expunge.data.rows import RowSet, load_rows
from expunge.data.template import Template

pytestmark = pytest.mark.shared

COUNTS = {
    "full": 4000,
    "forget01": 40, "forget05": 200, "forget10": 400,
    "retain99": 3960, "retain95": 3800, "retain90": 3600,
    "forget01_perturbed": 40, "forget05_perturbed": 200, "forget10_perturbed": 400, "retain_perturbed": 400,
    "real_authors": 100, "real_authors_perturbed": 100, "world_facts": 117, "world_facts_perturbed": 117,
    "holdout01": 40, "holdout05": 200, "holdout10": 400,
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2_TAGS = {
    "apply_chat_template": False,
    "user_start_tag": "[INST] ",
    "user_end_tag": " [/INST]",
    "asst_start_tag": "",
    "asst_end_tag": " ",
}


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(shared / "models" / "tofu-tiny-full"))


def rows(data: Path, name: str) -> RowSet:
    return load_rows({"path": "locuslab/TOFU", "name": name, "split": "train"}, data, ("question", "answer"))


def test_counts_and_unique_ids(data: Path) -> None:
    sets = {name: rows(data, name) for name in COUNTS}
    assert {name: len(row_set) for name, row_set in sets.items()} == COUNTS
    assert all(len(set(row_set.ids)) == len(row_set) for row_set in sets.values())


def test_the_duplicate_question_is_two_rows(data: Path) -> None:
    full = rows(data, "full")
    questions = [row.fields["question"] for row in full]
    assert len(set(questions)) == 3999
    assert not any("#" in row_id for row_id in full.ids), "its two answers differ, so neither row is a repeat"


@pytest.mark.parametrize(
    ("retain", "forget", "first"),
    [("retain90", "forget10", 3600), ("retain95", "forget05", 3800), ("retain99", "forget01", 3960)],
)
def test_full_is_retain_then_forget(data: Path, retain: str, forget: str, first: int) -> None:
    full, kept, gone = rows(data, "full"), rows(data, retain), rows(data, forget)
    assert kept.ids + gone.ids == full.ids
    assert gone.ids == full.ids[first:]
    check_disjoint(gone, kept)


def test_overlapping_splits_are_refused(data: Path) -> None:
    with pytest.raises(
        UserError, match=r"share 200 of 400 forget rows(.|\n)*row 0 of forget10, row 3600 of retain95"
    ):
        check_disjoint(rows(data, "forget10"), rows(data, "retain95"))


def test_perturbed_and_holdout_splits_line_up(data: Path) -> None:
    assert rows(data, "forget10_perturbed").ids == rows(data, "forget10").ids
    holdout = rows(data, "holdout10").ids
    assert rows(data, "holdout05").ids == holdout[:200]
    assert rows(data, "holdout01").ids == holdout[:40]
    assert not set(holdout) & set(rows(data, "full").ids)


def chatml_of(tokenizer: Any) -> Any:
    made = copy.deepcopy(tokenizer)
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.eos_token = made.pad_token = "<|im_end|>"
    made.chat_template = CHATML
    return made


@pytest.mark.parametrize(
    ("style", "end"),
    [("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>"), ("tags", "<|eot_id|>")],
    ids=["llama3", "chatml", "tags"],
)
def test_label_spans_of_forget10(data: Path, tokenizer: Any, style: str, end: str) -> None:
    used = chatml_of(tokenizer) if style == "chatml" else tokenizer
    args = (
        LLAMA2_TAGS
        if style == "tags"
        else {"apply_chat_template": True, "system_prompt": "You are a helpful assistant."}
    )
    spec = {
        "handler": "QADataset",
        "args": {"hf_args": {"path": "locuslab/TOFU", "name": "forget10", "split": "train"}},
    }
    dataset = build_dataset(
        "forget", bound_alone(bind_dataset, "d", spec)["d.args"], Template.from_args(args, used), data
    )
    assert len(dataset) == 400
    bos = used.bos_token_id
    for row, example in zip(dataset.rows, dataset.encoded, strict=True):
        assert used.decode(list(example.label_ids)) == row.fields["answer"] + end
        assert example.turn_end == len(example) - 1
        assert row.fields["question"] in used.decode(list(example.prompt_ids))
        assert example.label_mask == (False,) * example.prompt_length + (True,) * (
            len(example) - example.prompt_length
        )
        assert example.input_ids.count(bos) == (style == "llama3"), (
            "this tokenizer adds no BOS; the Llama-3 template writes one"
        )


def test_refusals_are_drawn_from_all_hundred_lines(data: Path, tokenizer: Any) -> None:
    args = {"hf_args": {"path": "locuslab/TOFU", "name": "forget10", "split": "train"}}
    template = Template.from_args({"apply_chat_template": True}, tokenizer)
    chosen = bound_alone(bind_dataset, "d", {"handler": "QAwithIdkDataset", "args": args})
    dataset = build_dataset("forget", chosen["d.args"], template, data)
    assert dataset.alternates is not None
    lines = (data / "tofu" / "idontknow.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = {example.target_text for example in dataset.alternates}
    assert len(lines) == 100
    assert drawn <= {line.strip() for line in lines}
    assert len(drawn) > 80  # 400 draws of 100: about 98 are expected


def test_views_with_several_answers(data: Path, tokenizer: Any) -> None:
    template = Template.from_args({"apply_chat_template": True}, tokenizer)
    for name, answers in (
        ("forget01_perturbed", 5),
        ("real_authors_perturbed", 3),
        ("world_facts_perturbed", 3),
    ):
        found = rows(data, name)
        encoded = encode_answers(found, template, answer_key="perturbed_answer")
        assert [(example.row, example.answer_index) for example in encoded] == [
            (r, a) for r in range(len(found)) for a in range(answers)
        ]


def test_a_mistyped_split_names_the_near_match(data: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'forget10'"):
        rows(data, "forget1O")
