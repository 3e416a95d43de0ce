"""`encode.hide_pad` against the field's mask, `ids != pad`, in training, evaluation and generation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subjects import subject_of

from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.data.template import Template
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.gradnorms import collect_gradnorms
from expunge.evaluation.collect.tokens import collect_tokens
from expunge.evaluation.views import examples_of
from expunge.lm.logprobs import token_logp
from expunge.models.outputs import label_outputs
from expunge.models.reference import CachedReference, view_fingerprint
from expunge.models.tokenizer import ensure_pad_token, load_tokenizer

QUESTIONS = ("Who wrote it?", "Where was it written, and when?")
ANSWERS = ("Ada Quill.", "Ada Quinn wrote it at sea.", "Nobody.")


@pytest.fixture
def unpadded(tiny_tokenizer: Any, tmp_path: Path) -> Any:
    """The tiny tokenizer without a pad token of its own: the field pads with the end of turn."""
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer({"pretrained_model_name_or_path": str(tmp_path)})
    tokenizer.pad_token = None
    ensure_pad_token(tokenizer)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id, "a reserved token pads"
    return tokenizer


@pytest.fixture
def encoded(unpadded: Any) -> list[Encoded]:
    """Each question with each answer; their end-of-turn tokens are hidden."""
    template = Template.from_args({"apply_chat_template": True, "system_prompt": "Be brief."}, unpadded)
    found = []
    for row, question in enumerate(QUESTIONS):
        for number, answer in enumerate(ANSWERS):
            found.append(
                template.encode(
                    question, answer, hide_pad=True, row=row, row_id=f"row{row}", answer_index=number
                )
            )
    assert all(
        item.hidden == unpadded.eos_token_id and item.input_ids.count(item.hidden) == 3 for item in found
    )
    return found


def field(model: Any, item: Encoded, pad: int) -> list[float]:
    """Log-probs of an example's labels with the field's mask, with two more pad tokens on the right."""
    ids_BT = torch.tensor([[*item.input_ids, pad, pad]])
    with torch.no_grad():
        logp_TV = model(input_ids=ids_BT, attention_mask=ids_BT.ne(pad).long()).logits[0].log_softmax(-1)
    return [
        float(logp_TV[place - 1, item.input_ids[place]])
        for place, counted in enumerate(item.label_mask)
        if counted
    ]


def plain(item: Encoded) -> Encoded:
    return replace(item, hidden=None)


def test_the_pad_that_is_hidden_is_the_fields(tiny_tokenizer: Any, unpadded: Any, tmp_path: Path):
    """The pad is the tokenizer's own, else the EOS.

    This also holds after saving, which writes our pad token.
    """
    kept = Template.from_args({"apply_chat_template": True}, tiny_tokenizer).encode(
        "Who?", "Ada.", hide_pad=True
    )
    assert kept.hidden == tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id
    unpadded.save_pretrained(tmp_path / "saved")
    again = load_tokenizer({"pretrained_model_name_or_path": str(tmp_path / "saved")})
    assert again.pad_token == unpadded.pad_token
    assert (
        Template.from_args({"apply_chat_template": True}, again).encode("Who?", "Ada.", hide_pad=True).hidden
        == again.eos_token_id
    )


def test_training_and_reference(tiny_model: Any, encoded: list[Encoded], unpadded: Any, tmp_path: Path):
    model = tiny_model(seed=1).eval()
    theirs = [field(model, item, unpadded.eos_token_id) for item in encoded]
    with torch.no_grad():
        out = label_outputs(model, collate(encoded, unpadded.pad_token_id))
    logp_BN = token_logp(out.logits_BNV, out.label_BN)
    for logp_N, mask_N, expected in zip(logp_BN, out.mask_BN, theirs, strict=True):
        np.testing.assert_allclose(logp_N[mask_N].numpy(), expected, atol=2e-5)
    assert abs(field(model, plain(encoded[0]), unpadded.pad_token_id)[0] - theirs[0][0]) > 1e-4, (
        "hiding changes nothing here"
    )
    rows = [replace(item, row=number) for number, item in enumerate(encoded)]
    reference = CachedReference.compute(model, {"forget": rows}, tmp_path, pad_id=unpadded.pad_token_id)
    stored = reference.outputs("forget", collate(rows, unpadded.pad_token_id)).logp_BN
    torch.testing.assert_close(stored[out.mask_BN], logp_BN[out.mask_BN], rtol=0, atol=2e-5)
    assert view_fingerprint(rows) != view_fingerprint([plain(item) for item in rows])


@pytest.mark.parametrize("share", [True, False])
def test_the_one_pass(tiny_model: Any, encoded: list[Encoded], unpadded: Any, share: bool):
    model = tiny_model(seed=1).eval()
    views = {
        "hidden": (encoded, examples_of(encoded, ["row0", "row1"])),
        "seen": ([plain(item) for item in encoded], examples_of(encoded, ["row0", "row1"])),
    }
    tables = collect_tokens(
        subject_of(model, pad_id=unpadded.pad_token_id, share_prefixes=share), views, Cost()
    )
    for name, pad in (("hidden", unpadded.eos_token_id), ("seen", unpadded.pad_token_id)):
        expected = [value for item in encoded for value in field(model, item, pad)]
        np.testing.assert_allclose(tables[name].logp_M, expected, atol=2e-5)


def test_gradient_norms(tiny_model: Any, encoded: list[Encoded], unpadded: Any):
    """Norm of the gradient of the mean nll, without the end of the turn, with the field's mask."""
    model = tiny_model(seed=1).eval()
    table = collect_gradnorms(subject_of(model), encoded, examples_of(encoded, ["row0", "row1"]), {}, Cost())
    for found, item in zip(table.global_B, encoded, strict=True):
        ids_BT = torch.tensor([item.input_ids])
        logp_TV = (
            model(input_ids=ids_BT, attention_mask=ids_BT.ne(unpadded.eos_token_id).long())
            .logits[0]
            .log_softmax(-1)
        )
        places = [
            place for place, counted in enumerate(item.label_mask) if counted and place != item.turn_end
        ]
        loss = -torch.stack([logp_TV[place - 1, item.input_ids[place]] for place in places]).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert found == pytest.approx(
            float(torch.cat([value.flatten() for value in gradients]).norm()), rel=1e-4
        )


def test_generation_gets_the_same_mask(encoded: list[Encoded], unpadded: Any):
    """Padded on the left, with the mask `ids != pad` for the field's pad instead of ours."""
    prompts = [item.prompt_only() for item in encoded[:: len(ANSWERS)]]
    side = collate(prompts, unpadded.pad_token_id, "left")
    as_field_BT = collate([plain(item) for item in prompts], unpadded.eos_token_id, "left")["input_ids"]
    torch.testing.assert_close(side["attention_mask"], as_field_BT.ne(unpadded.eos_token_id).long())
