"""Encoding: with any template, the labels are exactly the assistant turn with its end-of-turn token."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded, encode_ids, text_chunks
from expunge.data.template import Template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TAGS = {
    "apply_chat_template": False,
    "system_prompt_with_special_tokens": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "user_start_tag": "<|im_start|>user\n",
    "user_end_tag": "<|im_end|>\n",
    "asst_start_tag": "<|im_start|>assistant\n",
    "asst_end_tag": "<|im_end|>\n",
}
PLAIN_TAGS = {
    "apply_chat_template": False,
    "user_start_tag": "Question: ",
    "user_end_tag": "\n",
    "asst_start_tag": "Answer: ",
    "asst_end_tag": "\n\n",
}
QUESTION, ANSWER = "Where was Ada Quill born?", "Ada Quill was born in Port Verdant."


@pytest.fixture
def chatml(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer as ChatML: no BOS, turns end in <|im_end|>, another EOS, as in Qwen base models."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = None, "<|endoftext|>", "<|endoftext|>"
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def with_bos(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer as Llama's: a BOS before every plain text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text(tokenizer: Any, tokens: Any) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def check(tokenizer: Any, example: Encoded, prompt: str, turn: str) -> None:
    """The example is `prompt` + `turn`, the labels are `turn`, and its last token is the end of the turn."""
    assert text(tokenizer, example.input_ids) == prompt + turn
    assert text(tokenizer, example.prompt_ids) == prompt
    assert text(tokenizer, example.label_ids) == turn
    assert list(example.label_mask) == [False] * example.prompt_length + [True] * (
        len(example) - example.prompt_length
    )
    assert example.turn_end == len(example) - 1


def test_llama3_style(tiny_tokenizer: Any) -> None:
    template = Template.from_args({"apply_chat_template": True, "system_prompt": "Be brief."}, tiny_tokenizer)
    example = template.encode(QUESTION, ANSWER, row_id="r", row=3)
    prompt = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    check(tiny_tokenizer, example, prompt, ANSWER + "<|eot_id|>")
    assert example.input_ids.count(tiny_tokenizer.bos_token_id) == 1
    assert (example.row_id, example.row, example.target_text) == ("r", 3, ANSWER)
    reference = tiny_tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
        ],
        tokenize=True,
    )
    assert list(example.input_ids) == list(reference["input_ids"])


def test_chatml_newline_is_no_label_and_no_eos_is_added(chatml: Any) -> None:
    template = Template.from_args({"apply_chat_template": True}, chatml)
    example = template.encode(QUESTION, ANSWER)
    check(
        chatml,
        example,
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        ANSWER + "<|im_end|>",
    )


def test_append_eos_gives_the_encoding_of_open_unlearning(chatml: Any, tiny_tokenizer: Any) -> None:
    example = Template.from_args({"apply_chat_template": True}, chatml).encode(
        QUESTION, ANSWER, append_eos=True
    )
    check(
        chatml,
        example,
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        ANSWER + "<|im_end|>\n<|endoftext|>",
    )
    tagged = Template.from_args(CHATML_TAGS, chatml).encode(QUESTION, ANSWER, append_eos=True)
    assert text(chatml, tagged.label_ids) == ANSWER + "<|endoftext|>"
    llama = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    assert llama.encode(QUESTION, ANSWER, append_eos=True) == llama.encode(QUESTION, ANSWER)


def test_tags_that_are_chatml_encode_like_the_chat_template(chatml: Any) -> None:
    tags = Template.from_args(CHATML_TAGS, chatml).encode(QUESTION, ANSWER)
    chat = Template.from_args({"apply_chat_template": True, "system_prompt": "Be brief."}, chatml).encode(
        QUESTION, ANSWER
    )
    assert tags == chat


def test_plain_tags_are_closed_by_eos_and_the_separator_is_no_label(with_bos: Any) -> None:
    example = Template.from_args(PLAIN_TAGS, with_bos).encode(QUESTION, ANSWER)
    # "Answer: " ends in a blank, and byte-level BPE joins a blank to the next word: prompt and answer are
    # encoded separately.
    check(with_bos, example, f"<|begin_of_text|>Question: {QUESTION}\nAnswer: ", ANSWER + "<|eot_id|>")
    assert example.input_ids[0] == with_bos.bos_token_id
    assert example.input_ids.count(with_bos.bos_token_id) == 1


def test_end_tag_with_text_stays_in_the_turn(tiny_tokenizer: Any) -> None:
    example = Template.from_args({**PLAIN_TAGS, "asst_end_tag": " ###\n"}, tiny_tokenizer).encode(
        QUESTION, ANSWER
    )
    assert text(tiny_tokenizer, example.label_ids) == ANSWER + " ###\n<|eot_id|>"


def test_bos_written_into_the_tags_is_not_doubled(with_bos: Any) -> None:
    tags = {**PLAIN_TAGS, "user_start_tag": "<|begin_of_text|>Question: "}
    assert Template.from_args(tags, with_bos).encode(QUESTION, ANSWER) == Template.from_args(
        PLAIN_TAGS, with_bos
    ).encode(QUESTION, ANSWER)


def test_prompt_ids_are_a_prefix_where_a_token_would_span_the_border(tiny_tokenizer: Any) -> None:
    tags = {**PLAIN_TAGS, "asst_start_tag": "Ada"}
    prompt = f"Question: {QUESTION}\nAda"
    joint = ids(tiny_tokenizer, prompt + " Quill")
    alone = ids(tiny_tokenizer, f"Question: {QUESTION}\nA")
    assert joint[: len(alone)] != alone, "no token spans the border here, so the test checks nothing"
    example = Template.from_args({**tags, "asst_start_tag": "A"}, tiny_tokenizer).encode(QUESTION, "da Quill")
    assert list(example.prompt_ids) == alone
    assert text(tiny_tokenizer, example.label_ids) == "da Quill<|eot_id|>"


def test_generation_prompt_that_is_no_beginning_of_the_chat(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant<|end_header_id|>\n\n{% endif %}", "assistant<|end_header_id|>\n>{% endif %}"
    )
    example = Template.from_args({"apply_chat_template": True}, tokenizer).encode(QUESTION, ANSWER)
    assert text(tokenizer, example.prompt_ids).endswith("assistant<|end_header_id|>\n>")
    assert text(tokenizer, example.label_ids) == ANSWER + "<|eot_id|>"


def test_template_that_trims_and_one_that_writes_an_eos_after_the_turn(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "<|start_header_id|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    )
    example = Template.from_args({"apply_chat_template": True}, tokenizer).encode(QUESTION, f" {ANSWER}\n")
    assert text(tokenizer, example.label_ids) == ANSWER + "<|end|>"
    assert example.target_text == f" {ANSWER}\n"


def test_variables_reach_the_template(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ date_string }}|{{ tone }}|" + tokenizer.chat_template
    args = {
        "apply_chat_template": True,
        "date_string": "26 Jul 2024",
        "chat_template_kwargs": {"tone": "dry"},
    }
    example = Template.from_args(args, tokenizer).encode(QUESTION, ANSWER)
    assert text(tokenizer, example.input_ids).startswith("26 Jul 2024|dry|<|begin_of_text|>")


def test_a_warning_reports_a_template_that_writes_the_date(
    tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
        + tokenizer.chat_template
    )
    with caplog.at_level(logging.WARNING):
        Template.from_args({"apply_chat_template": True, "date_string": "26 Jul 2024"}, tokenizer)
        assert not caplog.records
        Template.from_args({"apply_chat_template": True}, tokenizer)
    assert "date_string" in caplog.text


@pytest.mark.parametrize("args", [{"apply_chat_template": True, "system_prompt": "Be brief."}, CHATML_TAGS])
def test_few_shot_examples_precede_the_question_and_are_no_labels(chatml: Any, args: dict[str, Any]) -> None:
    shots = [("Who?", "Ada."), ("When?", "1952.")]
    example = Template.from_args(args, chatml).encode(QUESTION, ANSWER, shots)
    turns = "".join(
        f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for q, a in shots
    )
    prompt = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{turns}"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    check(chatml, example, prompt, ANSWER + "<|im_end|>")


@pytest.mark.parametrize("args", [{"apply_chat_template": True}, PLAIN_TAGS])
def test_max_length_cuts_the_end_and_with_it_the_turn_end(tiny_tokenizer: Any, args: dict[str, Any]) -> None:
    template = Template.from_args(args, tiny_tokenizer)
    whole = template.encode(QUESTION, ANSWER)
    cut = template.encode(QUESTION, ANSWER, max_length=len(whole) - 1)
    assert cut.input_ids == whole.input_ids[:-1]
    assert cut.turn_end is None
    assert sum(cut.label_mask) == sum(whole.label_mask) - 1
    assert template.encode(QUESTION, ANSWER, max_length=len(whole)) == whole
    with pytest.raises(UserError) as caught:
        template.encode(QUESTION, ANSWER, max_length=whole.prompt_length, row_id="abc123")
    assert "row abc123" in str(caught.value)
    assert f"raise max_length to {len(whole)}" in str(caught.value)


def test_prompt_only_view(tiny_tokenizer: Any) -> None:
    example = Template.from_args({"apply_chat_template": True}, tiny_tokenizer).encode(
        QUESTION, ANSWER, row=5
    )
    view = example.prompt_only()
    assert view.input_ids == example.prompt_ids
    assert not any(view.label_mask)
    assert (view.turn_end, view.row, view.target_text) == (None, 5, ANSWER)


def test_empty_answer_is_the_turn_end_alone_and_an_error_without_one(tiny_tokenizer: Any) -> None:
    example = Template.from_args({"apply_chat_template": True}, tiny_tokenizer).encode(QUESTION, "")
    assert example.label_ids == (tiny_tokenizer.eos_token_id,)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    template = Template.from_args(PLAIN_TAGS, tokenizer)
    assert template.encode(QUESTION, ANSWER).turn_end is None
    with pytest.raises(UserError, match="no token that could be a label"):
        template.encode(QUESTION, "")


def test_no_prompt_at_all_never_labels_the_first_token(tiny_tokenizer: Any) -> None:
    tags = dict.fromkeys(("user_start_tag", "user_end_tag", "asst_start_tag", "asst_end_tag"), "")
    example = Template.from_args({"apply_chat_template": False, **tags}, tiny_tokenizer).encode("", ANSWER)
    assert example.label_mask == (False,) + (True,) * (len(example) - 1)


def test_whitespace_tokens_of_the_vocabulary_end_no_turn(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["\n\n"])
    example = Template.from_args(PLAIN_TAGS, tokenizer).encode(QUESTION, ANSWER)
    assert text(tokenizer, example.label_ids) == ANSWER + "<|eot_id|>"


def test_bad_template_arguments(tiny_tokenizer: Any) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match=r"no chat template(.|\n)*user_start_tag"):
        Template.from_args({"apply_chat_template": True}, bare)
    with pytest.raises(UserError, match="did you mean 'system_prompt'"):
        Template.from_args({"apply_chat_template": True, "sytem_prompt": "x"}, tiny_tokenizer)
    with pytest.raises(UserError, match="user_end_tag, asst_start_tag, asst_end_tag"):
        Template.from_args({"apply_chat_template": False, "user_start_tag": "Q: "}, tiny_tokenizer)
    no_system = copy.deepcopy(tiny_tokenizer)
    no_system.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + bare_template()
    )
    with pytest.raises(UserError, match=r"no system role(.|\n)*leave out model.template_args.system_prompt"):
        Template.from_args({"apply_chat_template": True, "system_prompt": "Be brief."}, no_system)
    mute = copy.deepcopy(tiny_tokenizer)
    mute.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="does not write the assistant's answer"):
        Template.from_args({"apply_chat_template": True}, mute)


def bare_template() -> str:
    return "{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"


def test_fingerprint_follows_template_and_tokenizer(tiny_tokenizer: Any, chatml: Any) -> None:
    args = {"apply_chat_template": True}
    base = Template.from_args(args, tiny_tokenizer).fingerprint
    assert Template.from_args(dict(args), copy.deepcopy(tiny_tokenizer)).fingerprint == base
    assert Template.from_args({**args, "system_prompt": "Be brief."}, tiny_tokenizer).fingerprint != base
    assert Template.from_args(PLAIN_TAGS, tiny_tokenizer).fingerprint != base
    assert Template.from_args(args, chatml).fingerprint != base
    grown = copy.deepcopy(tiny_tokenizer)
    grown.add_tokens(["Verdant"])
    assert Template.from_args(args, grown).fingerprint != base


def test_text_chunks_cover_the_text_once_with_a_bos_each(with_bos: Any, tiny_tokenizer: Any) -> None:
    words = "Ada Quill writes mystery novels in Port Verdant. " * 5
    plain = ids(tiny_tokenizer, words)
    chunks = list(text_chunks(with_bos, words, 16))
    assert [token for chunk in chunks for token in chunk[1:]] == plain
    assert all(chunk[0] == with_bos.bos_token_id and 1 < len(chunk) <= 16 for chunk in chunks)
    assert [token for chunk in text_chunks(tiny_tokenizer, words, 16) for token in chunk] == plain
    example = encode_ids(chunks[0], row_id="r")
    assert example.label_mask == (False,) + (True,) * (len(chunks[0]) - 1)
    assert example.turn_end is None
    with pytest.raises(UserError, match="max_length"):
        list(text_chunks(tiny_tokenizer, words, 1))
