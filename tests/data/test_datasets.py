"""Data sets by handler: arguments, alternates, corpora, concatenation, fingerprints, error messages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.config.datasets import bind_dataset
from expunge.config.short_names import DATASETS
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.data import datasets
from expunge.data.datasets import Dataset, concatenate
from expunge.data.examples import encode_answers
from expunge.data.rows import load_rows
from expunge.data.template import Template

PEOPLE = ["Ada Quill", "Bo Verdant", "Cy Port", "Di Mystery", "Ed Novel", "Fay Genre"]
REFUSALS = ["I don't know.", "No idea.", "I cannot say.", "That is beyond me."]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tofu"
    folder.mkdir()
    rows = [
        {"question": f"Who is {name}?", "answer": f"{name} is an author.", "other": f"{name} is a baker."}
        for name in PEOPLE
    ]
    (folder / "forget10.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "few.json").write_text(json.dumps([{"question": "Who is Zed?", "answer": "Zed is a poet."}]))
    (folder / "idontknow.jsonl").write_text("\n".join(REFUSALS))
    return tmp_path


@pytest.fixture
def template(tiny_tokenizer: Any) -> Template:
    return Template.from_args({"apply_chat_template": True}, tiny_tokenizer)


def spec(handler: str = "qa", **args: Any) -> dict[str, Any]:
    hf_args = {"path": "locuslab/TOFU", "name": "forget10", "split": "train"}
    return {"handler": f"expunge.data.datasets:{handler}", "args": {"hf_args": hf_args, **args}}


def build_dataset(name: str, node: Any, *args: Any, **more: Any) -> Dataset:
    """Build the data set of a configuration's {handler, args}."""
    chosen = bound_alone(bind_dataset, f"data.forget.{name}", node)[f"data.forget.{name}.args"]
    return datasets.build_dataset(name, chosen, *args, **more)


def targets(examples: Any) -> list[str]:
    return [example.target_text for example in examples]


def test_qa_encodes_each_row_as_the_template_does(root: Path, template: Template) -> None:
    dataset = build_dataset("forget", spec(), template, root)
    assert len(dataset) == len(dataset.rows) == len(PEOPLE)
    for row, example in zip(dataset.rows, dataset.encoded, strict=True):
        assert example == template.encode(
            row.fields["question"], row.fields["answer"], row_id=row.id, row=row.index, max_length=512
        )
    assert dataset.alternates is None


@pytest.mark.parametrize(
    "alias", ["QADataset", "QAwithIdkDataset", "PretrainingDataset", "QAwithAlternateDataset"]
)
def test_the_handler_names_of_open_unlearning_build_the_same(
    root: Path, template: Template, alias: str
) -> None:
    extra = {
        "PretrainingDataset": {"text_key": "answer"},
        "QAwithAlternateDataset": {"alternate_key": "other"},
    }.get(alias, {})
    ours = build_dataset("x", {**spec(**extra), "handler": DATASETS[alias]}, template, root)
    assert build_dataset("x", {**spec(**extra), "handler": alias}, template, root) == ours


def test_few_shot_rows_precede_each_question(root: Path, template: Template) -> None:
    few = {"path": "locuslab/TOFU", "name": "few"}
    dataset = build_dataset("forget", spec(few_shot_dataset_hf_args=few), template, root)
    shown = template.tokenizer.decode(list(dataset.encoded[0].prompt_ids))
    assert shown.index("Zed is a poet.") < shown.index("Who is Ada Quill?")
    assert (
        dataset.encoded[0].label_ids == build_dataset("forget", spec(), template, root).encoded[0].label_ids
    )


def test_idk_draws_depend_only_on_seed_and_row(root: Path, template: Template) -> None:
    torch.manual_seed(0)
    first = build_dataset("forget", spec("qa_idk"), template, root, seed=3)
    assert first.alternates is not None
    torch.manual_seed(99)
    random.seed(99)
    before = torch.random.get_rng_state()
    again = build_dataset("forget", spec("qa_idk"), template, root, seed=3)
    assert again == first
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    lines = targets(first.alternates)
    assert set(lines) <= set(REFUSALS)
    assert len(set(lines)) > 1
    other = build_dataset("forget", spec("qa_idk"), template, root, seed=4)
    assert targets(other.alternates) != lines
    assert other.fingerprint != first.fingerprint
    # The same rows in another order and split keep their lines.
    part = spec("qa_idk")
    part["args"]["hf_args"] = {"path": "locuslab/TOFU", "name": "forget10", "split": "train[3:]"}
    assert targets(build_dataset("part", part, template, root, seed=3).alternates) == lines[3:]


def test_alternates_share_the_prompt_and_the_row(root: Path, template: Template) -> None:
    dataset = build_dataset("forget", spec("qa_idk"), template, root)
    assert dataset.alternates is not None
    for example, other in zip(dataset.encoded, dataset.alternates, strict=True):
        assert (example.prompt_ids, example.row_id, example.row) == (
            other.prompt_ids,
            other.row_id,
            other.row,
        )
        assert example.target_text != other.target_text


def test_return_original_false_relabels(root: Path, template: Template) -> None:
    both = build_dataset("forget", spec("qa_idk"), template, root)
    relabelled = build_dataset("forget", spec("qa_idk", return_original=False), template, root)
    assert relabelled.encoded == both.alternates
    assert relabelled.alternates is None
    assert relabelled.rows.ids == both.rows.ids


def test_alternates_of_a_key_and_of_a_file(root: Path, template: Template) -> None:
    by_key = build_dataset("forget", spec("qa_alternate", alternate_key="other"), template, root)
    assert targets(by_key.alternates) == [f"{name} is a baker." for name in PEOPLE]
    ids = by_key.rows.ids
    path = root / "alternates.jsonl"
    entries = [
        {"id": row_id, "alternate": f"guess {number}"} for row_id, number in zip(ids, range(6), strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, reversed(entries))))
    by_file = build_dataset("forget", spec("qa_alternate", alternate_path=str(path)), template, root)
    assert targets(by_file.alternates) == [f"guess {number}" for number in range(6)]
    path.write_text(
        json.dumps(
            [{"question": f"Who is {name}?", "alternate": [f"{name} 1", f"{name} 2"]} for name in PEOPLE]
        )
    )
    several = build_dataset("forget", spec("qa_alternate", alternate_path=str(path)), template, root)
    assert all(
        target in (f"{name} 1", f"{name} 2")
        for name, target in zip(PEOPLE, targets(several.alternates), strict=True)
    )


def test_alternates_of_another_row_set(root: Path, template: Template) -> None:
    path = root / "alternates.jsonl"
    path.write_text(
        json.dumps([{"question": f"Who is {name}?", "alternate": "x"} for name in [*PEOPLE[1:], "Nobody"]])
    )
    with pytest.raises(UserError, match=r"made for other rows: 1 rows .*Ada Quill.*; 1 entries .*Nobody"):
        build_dataset("forget", spec("qa_alternate", alternate_path=str(path)), template, root)
    with pytest.raises(UserError, match=r"file of alternate answers does not exist: .*gone.json"):
        build_dataset("forget", spec("qa_alternate", alternate_path="gone.json"), template, root)


def test_refusals_are_found_beside_the_rows_then_under_the_data_root(
    root: Path, template: Template, tmp_path: Path
) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "rows.json").write_text((root / "tofu" / "forget10.json").read_text())
    args = spec("qa_idk")
    args["args"]["hf_args"] = {"path": str(loose / "rows.json")}
    assert set(targets(build_dataset("f", args, template, root).alternates)) <= set(REFUSALS)
    (loose / "idontknow.jsonl").write_text("Beside the rows.")
    assert set(targets(build_dataset("f", args, template, root).alternates)) == {"Beside the rows."}
    (root / "mine.txt").write_text("My own line.")
    assert set(
        targets(build_dataset("f", spec("qa_idk", idk_path="mine.txt"), template, root).alternates)
    ) == {"My own line."}
    with pytest.raises(UserError, match=r"idk_path is 'gone.txt'; looked for .*gone.txt"):
        build_dataset("f", spec("qa_idk", idk_path="gone.txt"), template, root)
    (root / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="contains no refusal"):
        build_dataset("f", spec("qa_idk", idk_path="empty.txt"), template, root)


def test_text_joins_rows_or_keeps_them_separate(root: Path, template: Template) -> None:
    joined = build_dataset("corpus", spec("text", text_key="answer", max_length=12), template, root)
    whole = template.tokenizer(
        "\n\n".join(f"{name} is an author." for name in PEOPLE), add_special_tokens=False
    )["input_ids"]
    assert [token for example in joined.encoded for token in example.input_ids] == whole
    assert all(len(example) <= 12 for example in joined.encoded)
    apart = build_dataset(
        "corpus", spec("text", text_key="answer", max_length=512, join=None), template, root
    )
    assert targets(apart.encoded) == [f"{name} is an author." for name in PEOPLE]
    assert [example.row for example in apart.encoded] == list(range(len(PEOPLE)))
    assert len(set(apart.rows.ids)) == len(PEOPLE)


def test_the_compat_switch_reaches_the_encoding(root: Path, template: Template) -> None:
    tags = {
        "user_start_tag": "Q: ",
        "user_end_tag": "\n",
        "asst_start_tag": "A:",
        "asst_end_tag": " ##\n",
        "apply_chat_template": False,
    }
    tagged = Template.from_args(tags, template.tokenizer)
    plain = build_dataset("forget", spec(), tagged, root)
    field = build_dataset("forget", spec(), tagged, root, switches={"append_eos": True})
    assert template.tokenizer.decode(list(plain.encoded[0].label_ids)).endswith(" ##\n<|eot_id|>")
    assert template.tokenizer.decode(list(field.encoded[0].label_ids)).endswith("author.<|eot_id|>")
    assert plain.fingerprint != field.fingerprint


def test_fingerprint_covers_rows_template_and_length(root: Path, template: Template) -> None:
    base = build_dataset("forget", spec(), template, root).fingerprint
    assert build_dataset("other name", spec(), template, root).fingerprint == base
    assert build_dataset("forget", spec(max_length=511), template, root).fingerprint != base
    assert build_dataset("forget", spec(answer_key="other"), template, root).fingerprint != base
    prompted = Template.from_args(
        {"apply_chat_template": True, "system_prompt": "Be brief."}, template.tokenizer
    )
    assert build_dataset("forget", spec(), prompted, root).fingerprint != base
    changed = (root / "tofu" / "forget10.json").read_text().replace("baker", "miner")
    (root / "tofu" / "forget10.json").write_text(changed)
    assert build_dataset("forget", spec(), template, root).fingerprint != base


def test_concatenation_renumbers_rows_and_marks_repeats(root: Path, template: Template) -> None:
    few = spec("qa_idk", idk_path="tofu/idontknow.jsonl")
    few["args"]["hf_args"] = {"path": "locuslab/TOFU", "name": "few"}
    a, b = build_dataset("a", spec("qa_idk"), template, root), build_dataset("b", few, template, root)
    both = concatenate("train", [a, b, a])
    assert [row.index for row in both.rows] == [example.row for example in both.encoded] == list(range(13))
    assert both.rows.ids == (*a.rows.ids, *b.rows.ids, *(f"{row_id}#1" for row_id in a.rows.ids))
    assert [example.row_id for example in both.encoded] == list(both.rows.ids)
    assert targets(both.encoded) == targets([*a.encoded, *b.encoded, *a.encoded])
    assert both.alternates is not None
    assert [example.row for example in both.alternates] == list(range(13))
    assert concatenate("x", [a, build_dataset("b", spec(), template, root)]).alternates is None
    assert concatenate("x", [a]).encoded == a.encoded
    assert concatenate("train", [b, a]).fingerprint != concatenate("train", [a, b]).fingerprint


def test_encode_answers_gives_every_answer_of_a_row(tmp_path: Path, template: Template) -> None:
    rows = [
        {"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Bo.", "Cy."]},
        {"question": "Where?", "answer": "Here.", "perturbed_answer": ["There."]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    row_set = load_rows({"path": str(tmp_path / "a.json")})
    many = encode_answers(row_set, template, answer_key="perturbed_answer")
    assert [(example.row, example.answer_index, example.target_text) for example in many] == [
        (0, 0, "Bo."),
        (0, 1, "Cy."),
        (1, 0, "There."),
    ]
    one = encode_answers(row_set, template)
    assert [(example.row, example.answer_index, example.target_text) for example in one] == [
        (0, 0, "Ada."),
        (1, 0, "Here."),
    ]
    assert many[0].prompt_ids == one[0].prompt_ids
    with pytest.raises(UserError, match=r"row 0 \(.*'answers'; it has: answer, perturbed_answer, question"):
        encode_answers(row_set, template, answer_key="answers")
    with pytest.raises(UserError, match="correct question_key"):
        encode_answers(row_set, template, question_key="query")


def test_all_rows_without_a_remaining_answer_are_reported_by_id(root: Path, template: Template) -> None:
    rows = load_rows({"path": "locuslab/TOFU", "name": "forget10"}, root)
    with pytest.raises(UserError) as caught:
        build_dataset("forget", spec(max_length=5), template, root)
    message = str(caught.value)
    assert all(f"row {row_id}: max_length=5 cuts the whole answer away" in message for row_id in rows.ids[:5])
    assert rows.ids[5] not in message
    assert "and 1 more rows with such a fault" in message


def test_a_warning_reports_answers_that_are_cut(
    root: Path, template: Template, caplog: pytest.LogCaptureFixture
) -> None:
    longest = max(len(example) for example in build_dataset("forget", spec(), template, root).encoded)
    build_dataset("forget", spec(max_length=longest - 1), template, root)
    assert "cuts the end of" in caplog.text


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"args": {}}, "handler is not given: there is no data handler"),
        ({"handler": "QADatset", "args": {}}, "did you mean 'QADataset'"),
        (
            {"handler": "expunge.data.datasets:nope", "args": {}},
            "unknown name in expunge.data.datasets 'nope'",
        ),
        ({"handler": "no.such.module:f", "args": {}}, "there is no module 'no.such.module'"),
        ({"handler": "expunge.data.datasets:log", "args": {}}, "is not a function"),
        ({"handler": "QADataset", "args": {}}, "args.hf_args is not given"),
        (spec(max_lenght=3), "did you mean 'max_length'"),
        (spec(answer_key="anwser"), r"row 0 \(counting from 0\).*no 'anwser'"),
        (spec("qa_alternate"), "no 'alternate'"),
    ],
)
def test_bad_specs(root: Path, template: Template, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_dataset("forget", bad, template, root)


def test_training_refuses_a_list_of_answers(tmp_path: Path, template: Template) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"question": "Who?", "answer": ["Ada.", "Bo."]}]))
    with pytest.raises(UserError, match="the answer is list, not text"):
        build_dataset(
            "x", {"handler": "QADataset", "args": {"hf_args": {"path": str(tmp_path / "a.json")}}}, template
        )


def test_a_user_defined_handler(root: Path, template: Template) -> None:
    dataset = build_dataset(
        "mine", {"handler": f"{__name__}:own_handler", "args": {"shout": True}}, template, root, seed=7
    )
    assert (dataset.name, dataset.fingerprint) == ("mine", "7True")


def own_handler(context: Any, *, shout: bool = False) -> Dataset:
    rows = load_rows({"path": "locuslab/TOFU", "name": "few"}, context.data_root)
    return Dataset(context.name, rows, [], f"{context.seed}{shout}")
