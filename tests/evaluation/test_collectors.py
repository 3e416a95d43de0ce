"""Generations and gradient norms: batches change no result, and the model is left unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from subjects import subject_of

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.data.template import Template
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.generations import GenerationSettings, collect_generations
from expunge.evaluation.collect.gradnorms import collect_gradnorms
from expunge.evaluation.plan import make_plan
from expunge.evaluation.views import examples_of

QUESTIONS = [
    "Who is Ada Quill?",
    "Ada?",
    "What genre does Ada Quill write in? Who are the parents of Ada Quill?",
    "Who is Ada Quill?",
]


@pytest.fixture
def encoded(tiny_tokenizer: Any) -> list[Encoded]:
    template = Template.from_args({"apply_chat_template": True}, tiny_tokenizer)
    return [
        template.encode(question, "Ada Quill.", row=row, row_id=f"row{row}")
        for row, question in enumerate(QUESTIONS)
    ]


def generated(model: Any, tokenizer: Any, encoded: list[Encoded], pad_id: int, **kwargs: Any) -> Any:
    settings = {"max_new_tokens": 6, "do_sample": False, **kwargs.pop("settings", {})}
    rows = examples_of(encoded, [f"row{row}" for row in range(len(encoded))])
    subject, cost = subject_of(model, tokenizer, pad_id), kwargs.pop("cost", Cost())
    return collect_generations(subject, encoded, rows, GenerationSettings(**settings), cost)


def test_left_padding_changes_no_generation(
    tiny_model: Any, tiny_tokenizer: Any, encoded: list[Encoded]
) -> None:
    """In one batch, alone, and by taking the most likely token step by step."""
    model, pad = tiny_model(), tiny_tokenizer.pad_token_id
    table = generated(model, tiny_tokenizer, encoded, pad)
    for row, item in enumerate(encoded):
        ids = list(item.prompt_ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tiny_tokenizer.eos_token_id:
                break
        expected = tiny_tokenizer.decode(ids[len(item.prompt_ids) :], skip_special_tokens=True)
        assert table.generation[row] == expected
    assert table.generation[0] == table.generation[3]
    assert QUESTIONS[1] in table.prompt[1]
    assert "<|" not in table.prompt[1]
    assert table.examples.target_text[1] == "Ada Quill."


def test_equal_prompts_are_continued_once(
    tiny_model: Any, tiny_tokenizer: Any, encoded: list[Encoded]
) -> None:
    cost = Cost()
    generated(tiny_model(), tiny_tokenizer, encoded, tiny_tokenizer.pad_token_id, cost=cost)
    assert cost.forward_tokens == sum(len(item.prompt_ids) for item in encoded[:3])


def test_pad_may_be_the_end_of_the_turn(tiny_model: Any, tiny_tokenizer: Any, encoded: list[Encoded]) -> None:
    model = tiny_model()
    table = generated(model, tiny_tokenizer, encoded, tiny_tokenizer.eos_token_id)
    assert (
        table.generation == generated(model, tiny_tokenizer, encoded, tiny_tokenizer.pad_token_id).generation
    )


def test_a_generation_is_cut_at_the_first_stop(
    tiny_model: Any, tiny_tokenizer: Any, encoded: list[Encoded]
) -> None:
    whole = generated(tiny_model(), tiny_tokenizer, encoded, 0).generation[0]
    assert len(whole) > 2
    table = generated(tiny_model(), tiny_tokenizer, encoded, 0, settings={"stop": [whole[2:]]})
    assert table.generation[0] == whole[: whole.index(whole[2:])]


def test_the_models_own_sampling_settings_do_not_leak_in(
    tiny_model: Any, tiny_tokenizer: Any, encoded: list[Encoded]
) -> None:
    model = tiny_model().train()
    expected = generated(tiny_model(), tiny_tokenizer, encoded, 0).generation
    (
        model.generation_config.do_sample,
        model.generation_config.temperature,
        model.generation_config.repetition_penalty,
    ) = True, 9.0, 5.0
    assert generated(model, tiny_tokenizer, encoded, 0).generation == expected
    assert model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_newtokens": 3}, "max_new_tokens"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan({"generation": settings})


def norms(model: Any, encoded: list[Encoded], **settings: Any) -> Any:
    rows = examples_of(encoded, [f"row{row}" for row in range(len(encoded))])
    return collect_gradnorms(subject_of(model), encoded, rows, settings, Cost())


def test_gradient_norms_are_those_of_a_backward_pass(tiny_model: Any, encoded: list[Encoded]) -> None:
    """The mean nll without the end of the turn, by transformers' own loss."""
    model = tiny_model()
    table = norms(model, encoded)
    l1 = norms(model, encoded[:1], p=1)
    for row, item in enumerate(encoded[:2]):
        labels = [
            token if counted and place != item.turn_end else -100
            for place, (token, counted) in enumerate(zip(item.input_ids, item.label_mask, strict=True))
        ]
        model.zero_grad()
        model(torch.tensor([item.input_ids]), labels=torch.tensor([labels])).loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert table.global_B[row] == pytest.approx(
            float(torch.cat([gradient.flatten() for gradient in gradients]).norm()), rel=1e-4
        )
        assert table.tensor_mean_B[row] == pytest.approx(
            np.mean([float(gradient.norm()) for gradient in gradients]), rel=1e-4
        )
        if row == 0:
            assert l1.global_B[0] == pytest.approx(
                sum(float(gradient.abs().sum()) for gradient in gradients), rel=1e-4
            )


def test_no_gradient_is_left_behind_or_touched(tiny_model: Any, encoded: list[Encoded]) -> None:
    model = tiny_model().train()
    held = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = held.clone()
    norms(model, encoded[:1])
    assert torch.equal(model.lm_head.weight.grad, held)
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert model.training


def test_dropout_is_off_unless_asked_for(tiny_model: Any, encoded: list[Encoded]) -> None:
    plain = norms(tiny_model(), encoded[:1]).global_B[0]
    model = tiny_model(attention_dropout=0.5)
    assert norms(model, encoded[:1]).global_B[0] == pytest.approx(plain)
    assert norms(model, encoded[:1], train_mode=True).global_B[0] != pytest.approx(plain, rel=1e-3)
    assert not model.training


def test_a_frozen_model_is_thawed_for_the_while(tiny_model: Any, encoded: list[Encoded]) -> None:
    model = tiny_model().requires_grad_(False)
    assert norms(model, encoded[:1]).global_B[0] == pytest.approx(
        norms(tiny_model(), encoded[:1]).global_B[0]
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_answer_of_nothing_but_the_end_of_the_turn_is_unscored(tiny_model: Any) -> None:
    bare = Encoded((3, 4, 5), (False, False, True), 2, 2, "row0")
    table = norms(tiny_model(), [bare])
    assert np.isnan(table.global_B).all()
    assert np.isnan(table.tensor_mean_B).all()
