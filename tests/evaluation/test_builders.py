"""Views of documents, passages, prompts and multiple choice: labels, context and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.data.tokenizer_traits import plain_ids
from expunge.evaluation.choice_views import choices
from expunge.evaluation.plan import make_plan
from expunge.evaluation.text_views import documents, passages, prompts, windows
from expunge.evaluation.view_rows import load_views
from expunge.evaluation.wikitext import detokenized, pages

TEXTS = [
    "Ada Quill was born in Port Verdant in 1952 and writes mystery novels.",
    "I don't know.",
    "Who are the parents of Ada Quill?",
]


def rows_of(*fields: dict[str, Any]) -> RowSet:
    return RowSet.of(
        "rows", [Row(f"id{number}", number, field) for number, field in enumerate(fields)], "memory"
    )


@pytest.fixture
def template(tiny_tokenizer: Any) -> Template:
    return Template.from_args({"apply_chat_template": True}, tiny_tokenizer)


@pytest.mark.parametrize(
    ("size", "longest", "stride"),
    [(23, 8, 7), (23, 8, 1), (23, 8, 3), (8, 8, 7), (9, 8, 7), (2, 8, 3), (1, 8, 3)],
)
def test_every_token_is_a_label_once_and_has_all_the_context_there_is_room_for(
    size: int, longest: int, stride: int
) -> None:
    found = list(windows(size, longest, stride))
    assert [place for _, begin, end in found for place in range(begin, end)] == list(range(1, size))
    for number, (start, begin, end) in enumerate(found):
        assert start < begin  # something predicts the first label
        assert end - start == min(end, longest)  # as long as can be
        assert end - begin <= (longest if number == 0 else stride)


@pytest.mark.parametrize("stride", [None, 2, 5])
def test_documents_are_covered_by_their_windows(template: Template, stride: int | None) -> None:
    encoded = documents(rows_of(*({"text": text} for text in TEXTS)), template, 8, stride=stride)
    bos = template.tokenizer.bos_token_id
    for row, text in enumerate(TEXTS):
        own = [item for item in encoded if item.row == row]
        ids = plain_ids(template.tokenizer, text)
        assert [token for item in own for token in item.label_ids] == ids
        assert own[0].input_ids[0] == bos
        assert [item.answer_index for item in own] == list(range(len(own)))
        assert [item.target_text for item in own] == [text] + [""] * (len(own) - 1)
        # Each label's context is what stands before it in the document.
        whole, done = (bos, *ids), 1
        for item in own:
            end = done + len(item.label_ids)
            assert item.input_ids == whole[end - len(item) : end]
            done = end


def test_without_any_first_token_the_first_is_not_scored(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = template.tokenizer
    monkeypatch.setattr(
        tokenizer,
        "_special_tokens_map",
        {**tokenizer._special_tokens_map, "bos_token": None, "eos_token": None},
    )
    assert tokenizer.bos_token_id is None
    (item,) = documents(rows_of({"text": "Ada?"}), template, 99)
    assert item.label_ids == tuple(plain_ids(tokenizer, "Ada?"))[1:]


@pytest.mark.parametrize(
    "given",
    [{"max_length": 1}, {"max_length": None}, {"max_length": 8, "stride": 8}, {"max_length": 8, "stride": 0}],
)
def test_wrong_windows(template: Template, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"max_length|stride"):
        documents(rows_of({"text": "Ada"}), template, given.pop("max_length"), **given)


def test_documents_without_text(template: Template) -> None:
    with pytest.raises(UserError, match="no text under 'text'; it has: page"):
        documents(rows_of({"page": "Ada"}), template, 8)


WIKI = (
    " \n = Ada Quill = \n \n Ada ( born 1952 ) wrote 1 @,@ 200 pages , they say . \n"
    " = = Life = = \n = = = Youth = = = \n"
    " \n = Ben = \n It 's so . \n"
)


def test_pages_of_wikitext_begin_at_titles_not_at_sections() -> None:
    found = pages([WIKI])
    assert len(found) == 2
    assert found[0].startswith(" = Ada Quill = \n")
    assert "Youth" in found[0]
    assert found[1] == " = Ben = \n It 's so . "
    assert pages(WIKI.splitlines(keepends=True)) == found
    assert pages(WIKI.splitlines()) == found


def test_wikitext_is_scored_as_it_would_be_written() -> None:
    assert (
        detokenized(pages([WIKI])[0])
        == " = Ada Quill =\n\nAda (born 1952) wrote 1,200 pages, they say.\n== Life ==\n=== Youth ===\n"
    )
    assert detokenized(' " so " he said ; [ x ] ') == ' "so" he said; [x] '


def test_passages_share_their_beginning_and_nothing_else_is_in_them(template: Template) -> None:
    ids = plain_ids(template.tokenizer, " ".join(TEXTS))
    size = len(ids) // 3
    found = {
        prompt: passages(rows_of({"text": " ".join(TEXTS)}), template, size, prompt=prompt, target=4)
        for prompt in (2, 5)
    }
    assert [len(views) for views in found.values()] == [3, 3]
    for number in range(3):
        start = number * size
        for prompt, views in found.items():
            item = views[number]
            assert item.input_ids == tuple(ids[start : start + prompt + 4])
            assert item.prompt_ids == tuple(ids[start : start + prompt])
            assert item.target_text == template.tokenizer.decode(ids[start + prompt : start + prompt + 4])
    (rest,) = passages(rows_of({"text": TEXTS[0]}), template, 12, prompt=1, count=1)
    assert len(rest.label_ids) == 11
    spread = passages(rows_of({"text": " ".join(TEXTS)}), template, 7, prompt=2, count=2)
    assert [item.input_ids[0] for item in spread] == [ids[0], ids[7 * (len(ids) // 7 // 2)]]


def test_passages_that_cannot_be(template: Template) -> None:
    with pytest.raises(UserError, match="no prompt of 9 with a target of 4"):
        passages(rows_of({"text": TEXTS[0]}), template, 10, prompt=9, target=4)
    with pytest.raises(UserError, match="no text of memory has 500 tokens"):
        passages(rows_of({"text": TEXTS[0]}), template, 500, prompt=9, target=4)


def test_prompts_are_those_of_generation(template: Template) -> None:
    records = [{"prompt": {"text": text}} for text in (TEXTS[0], TEXTS[1], TEXTS[0])]
    chat = prompts(rows_of(*records), template, None, prompt_key="prompt.text")
    assert [item.prompt_ids for item in chat] == [
        template.encode(text, "no").prompt_ids for text in TEXTS[:2]
    ]
    raw = prompts(rows_of(*records), template, 5, prompt_key="prompt.text", chat=False, count=1)
    assert [item.input_ids for item in raw] == [tuple(plain_ids(template.tokenizer, TEXTS[0])[-5:])]
    assert not any(any(item.label_mask) for item in (*chat, *raw))
    with pytest.raises(UserError, match=r"no text under 'prompt\.txt'"):
        prompts(rows_of(*records), template, None, prompt_key="prompt.txt")


QUESTION = {
    "question": " Who writes? ",
    "choices": ["Ada", "Ben", "Cy"],
    "answer": 2,
    "subject": "world_lore",
}
SHOWN = "On world lore.\n\nWho writes?\nA. Ada\nB. Ben\nC. Cy\nAnswer:"


def test_multiple_choice_is_written_as_the_harness_writes_it(template: Template) -> None:
    found = choices(rows_of(QUESTION, {**QUESTION, "answer": "b"}), template, None, intro="On {subject}.\n\n")
    assert [template.tokenizer.decode(item.input_ids) for item in found[:3]] == [
        f"{SHOWN} {letter}" for letter in "ABC"
    ]
    assert all(item.prompt_ids == tuple(plain_ids(template.tokenizer, SHOWN)) for item in found)
    assert [item.target_text for item in found] == ["C"] * 3 + ["B"] * 3
    assert [(item.row, item.answer_index) for item in found] == [
        (row, answer) for row in range(2) for answer in range(3)
    ]


def test_a_long_question_loses_the_same_beginning_for_every_letter(template: Template, caplog: Any) -> None:
    found = choices(rows_of(QUESTION), template, 20)
    assert max(map(len, found)) == 20
    assert len({item.prompt_ids for item in found}) == 1
    assert "1 of 1 questions have more than 20 tokens" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"answer": 3}, "answer=3 is not one of its 3 answers"),
        ({"answer": True}, "answer=True is not one"),
        ({"answer": "E"}, "answer='E' is not one"),
        ({"answer": None}, "answer=None is not one"),
        ({"choices": ["Ada"]}, "no list of 2"),
        ({"choices": "Ada"}, "no list of 2"),
        ({"question": None}, "no text under 'question'"),
    ],
)
def test_wrong_questions(template: Template, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choices(rows_of({**QUESTION, **wrong}), template, None)


def test_a_view_of_a_kind_takes_that_kinds_options() -> None:
    views = {
        "a": {"kind": "choice", "hf_args": {}},
        "b": {"kind": "choices", "hf_args": {}, "question_keys": "q"},
        "c": {"kind": "passages", "hf_args": {}, "question_key": "q", "prompt": 5},
        "d": {"kind": "documents"},
        "e": {"kind": "documents", "hf_args": {}, "split": "wikitex"},
        "f": {"kind": "passages", "hf_args": {}},
        "g": {"kind": "harness"},
    }
    with pytest.raises(UserError) as caught:
        make_plan({"views": views}, key="eval.own")
    found = [str(fault) for fault in caught.value.faults]
    expected = (
        "eval.own.views.a.kind=choice: unknown kind of view 'choice'\n  -> did you mean 'choices'",
        "eval.own.views.b.question_keys=q: choices takes no 'question_keys'\n  -> did you mean 'question_key",
        "eval.own.views.c.question_key=q: passages takes no 'question_key'",
        "eval.own.views.d has no hf_args",
        "eval.own.views.e.split=wikitex: must be one of 'rows', 'wikitext'\n  -> did you mean 'wikitext'",
        "eval.own.views.f.prompt is not given",
        "eval.own.views.g.task is not given",
    )
    assert len(found) == len(expected)
    for line, words in zip(found, expected, strict=True):
        assert line.startswith(words)


def test_a_kind_of_view_of_the_users_own(template: Template, tmp_path: Path) -> None:
    """`kind: module:function`: a function like the shipped ones, without any change to the package."""
    (tmp_path / "text.txt").write_text("Ada")
    node = {"kind": f"{__name__}:shouted", "hf_args": {"path": str(tmp_path / "text.txt")}, "mark": "?"}
    plan = make_plan({"views": {"own": node}})
    (item,) = load_views(plan.views, ["own"], template, None, {})["own"].encoded
    assert item.target_text == "ADA?"


def shouted(rows: RowSet, template: Template, max_length: int | None, *, mark: str = "!") -> list[Encoded]:
    return [template.encode("Who?", f"{row.fields['text']}".upper() + mark) for row in rows]


def test_missing_optional_rows(template: Template, tmp_path: Path) -> None:
    """One missing: the other is read. All missing: each file is reported once, with its path."""
    here = tmp_path / "mine" / "b.jsonl"
    here.parent.mkdir()
    node: dict[str, Any] = {"kind": "choices", "hf_args": {"path": None}, "optional": True}
    local = {
        "a": ["mine/a.jsonl", "mine/both.jsonl"],
        "b": ["mine/b.jsonl", "mine/both.jsonl"],
        "c": ["mine/a.jsonl"],
    }
    specs = make_plan({"views": {name: {**node, "local": places} for name, places in local.items()}}).views
    with pytest.raises(UserError) as caught:
        load_views(specs, ["a", "b", "c"], template, tmp_path, {})
    assert [fault.message.partition(":")[0] for fault in caught.value.faults[:2]] == [
        "nothing to score for a, c",
        "nothing to score for b",
    ]
    assert str(tmp_path / "mine" / "a.jsonl") in str(caught.value)
    here.write_text(json.dumps(QUESTION) + "\n")
    views = load_views(specs, ["a", "b", "c"], template, tmp_path, {})
    assert list(views) == ["b"]
    assert str(tmp_path / "mine" / "a.jsonl") in views.missing["a"]
    (tmp_path / "mine" / "both.jsonl").write_text(json.dumps(QUESTION) + "\n")
    assert (
        load_views(specs, ["a", "b"], template, tmp_path, {})["a"].rows.file
        == tmp_path / "mine" / "both.jsonl"
    )
    # A damaged file does not count as missing.
    here.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_views(specs, ["a", "b"], template, tmp_path, {})


def test_the_models_limit_shortens_windows_and_is_part_of_the_fingerprint(
    template: Template, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXTS[0])
    node = {"kind": "documents", "hf_args": {"path": str(tmp_path / "text.txt")}, "max_length": 12}
    specs = make_plan({"views": {"d": node}}).views
    views = [load_views(specs, ["d"], template, None, {}, longest)["d"] for longest in (None, 99, 6)]
    assert [max(map(len, view.encoded)) for view in views] == [12, 12, 6]
    assert views[0].fingerprint == views[1].fingerprint != views[2].fingerprint
