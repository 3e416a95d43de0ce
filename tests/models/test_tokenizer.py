from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from expunge.core.errors import UserError
from expunge.models.tokenizer import ensure_pad_token, load_tokenizer


def make(tokens: list[str], **special: str) -> Any:
    backend = Tokenizer(
        models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize(
    ("tokens", "special", "expected"),
    [
        (
            ["a", "</s>", "<|finetune_right_pad_id|>", "<unk>"],
            {"eos_token": "</s>"},
            "<|finetune_right_pad_id|>",
        ),
        (["a", "<|im_end|>", "<|endoftext|>"], {"eos_token": "<|im_end|>"}, "<|endoftext|>"),
        (["<unk>", "</s>", "a"], {"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>"),
        (["a", "</s>"], {"eos_token": "</s>"}, "</s>"),
    ],
)
def test_the_pad_token_comes_from_the_vocabulary(tokens: list[str], special: dict[str, str], expected: str):
    tokenizer, notices = make(tokens, **special), []
    ensure_pad_token(tokenizer, notices=notices)
    assert tokenizer.pad_token == expected
    assert len(tokenizer) == len(tokens)
    assert expected in notices[0]


def test_an_existing_pad_token_is_kept_and_a_requested_one_must_exist():
    tokenizer, notices = make(["a", "</s>", "p", "<pad>"], eos_token="</s>", pad_token="p"), []
    ensure_pad_token(tokenizer, notices=notices)
    assert (tokenizer.pad_token, notices) == ("p", [])
    ensure_pad_token(tokenizer, "a")
    assert tokenizer.pad_token == "a"
    with pytest.raises(UserError, match="not in the tokenizer's vocabulary"):
        ensure_pad_token(tokenizer, "<new>")


def test_a_tokenizer_without_pad_and_end_of_text_token_is_refused():
    with pytest.raises(UserError, match="neither a pad token nor"):
        ensure_pad_token(make(["a", "b"]))


def test_loads_from_a_folder(tiny_tokenizer: Any, tmp_path: Path):
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer({"pretrained_model_name_or_path": str(tmp_path), "padding_side": "left"})
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert tokenizer.pad_token == "<|pad|>"


def test_faults_name_the_places_searched(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'padding_side'"):
        load_tokenizer({"pretrained_model_name_or_path": str(tmp_path), "paddding_side": "left"})
    with pytest.raises(UserError, match="there is no model at"):
        load_tokenizer({"pretrained_model_name_or_path": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="incomplete or damaged"):
        load_tokenizer({"pretrained_model_name_or_path": str(tmp_path)})
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        load_tokenizer({"pretrained_model_name_or_path": "no-such-org/no-such-model"})
