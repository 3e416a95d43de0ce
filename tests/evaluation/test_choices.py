"""The letters' log-probabilities equal those of one full pass per letter, with any padding and batch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from subjects import subject_of

from expunge.data.encoded import Encoded
from expunge.data.rows import Row, RowSet
from expunge.data.template import Template
from expunge.evaluation.choice_views import choices
from expunge.evaluation.collect.choices import collect_choices
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.collect.tokens import collect_tokens
from expunge.evaluation.tables import ChoiceTable
from expunge.evaluation.views import examples_of


@pytest.fixture
def encoded(tiny_tokenizer: Any) -> list[Encoded]:
    """Questions of different lengths with two to four answers; a letter is one or two tokens here."""
    rows = [
        Row(
            f"row{number}",
            number,
            {
                "question": "Who? " * (number + 1),
                "choices": ["Ada", "Ben", "Cy", "Di"][: 2 + number % 3],
                "answer": 1,
            },
        )
        for number in range(5)
    ]
    return choices(
        RowSet.of("rows", rows, "memory"),
        Template.from_args({"apply_chat_template": True}, tiny_tokenizer),
        None,
    )


def collected(model: Any, encoded: list[Encoded], **kwargs: Any) -> ChoiceTable:
    ids = list(dict.fromkeys(item.row_id for item in encoded))
    cost, side = kwargs.pop("cost", Cost()), kwargs.pop("side", "right")
    return collect_choices(subject_of(model, **kwargs), encoded, examples_of(encoded, ids), cost, side)


def by_brute_force(model: Any, encoded: list[Encoded]) -> list[float]:
    """One full forward pass per letter; float64 sums of log-softmax at the positions before its tokens."""
    found = []
    for item in encoded:
        with torch.no_grad():
            logp_TV = model(torch.tensor([item.input_ids])).logits[0].double().log_softmax(-1)
        labels = [place for place, counted in enumerate(item.label_mask) if counted]
        found.append(sum(float(logp_TV[place - 1, item.input_ids[place]]) for place in labels))
    return found


def test_each_letter_as_by_a_pass_of_its_own(tiny_model: Any, encoded: list[Encoded]) -> None:
    model, cost = tiny_model().train(), Cost()
    table = collected(model, encoded, cost=cost)
    np.testing.assert_allclose(table.logp_B, by_brute_force(model.eval(), encoded), atol=2e-5)
    # As the pass over all tokens has it; with fewer tokens through the model than letters would take.
    tokens = collect_tokens(
        subject_of(model), {"v": (encoded, table.examples)}, Cost(), field_rounding=False
    )["v"]
    np.testing.assert_allclose(table.logp_B, np.add.reduceat(tokens.logp_M, tokens.offset_B1[:-1]), atol=2e-5)
    assert cost.forward_tokens < sum(map(len, encoded)) / 2


def test_one_token_letters_take_one_sequence_a_question(tiny_model: Any) -> None:
    cost = Cost()
    several = [
        Encoded((5, 6, 7, letter), (False, False, False, True), None, 3, "row0", 0, place, "A")
        for place, letter in enumerate((8, 9))
    ]
    table = collected(tiny_model(), several, cost=cost)
    assert (cost.examples, cost.unique, cost.forward_tokens) == (2, 1, 3)
    np.testing.assert_allclose(table.logp_B, by_brute_force(tiny_model(), several), atol=2e-5)


def test_letters_of_unlike_lengths(tiny_model: Any) -> None:
    """A: 8. B: 9 10. C: 9 11 12. The prefix runs once, with 9 11 after it."""
    tails = ((8,), (9, 10), (9, 11, 12))
    several = [
        Encoded((5, 6, *tail), (False, False) + (True,) * len(tail), None, 2, "row0", 0, place, "A")
        for place, tail in enumerate(tails)
    ]
    cost = Cost()
    table = collected(tiny_model(), several, cost=cost)
    assert (cost.unique, cost.forward_tokens) == (1, 4)
    np.testing.assert_allclose(table.logp_B, by_brute_force(tiny_model(), several), atol=2e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_neither_padding_nor_batches_change_a_number(
    tiny_model: Any, encoded: list[Encoded], side: Literal["right", "left"], batch_size: int
) -> None:
    model = tiny_model()
    table = collected(model, encoded, side=side, batch_size=batch_size)
    np.testing.assert_allclose(table.logp_B, collected(model, encoded).logp_B, atol=2e-5)
    np.testing.assert_allclose(table.logp_B, by_brute_force(model, encoded), atol=2e-5)


def test_half_precision_is_summed_in_single(tiny_model: Any, encoded: list[Encoded]) -> None:
    table = collected(tiny_model().to(torch.bfloat16), encoded)
    assert table.logp_B.dtype == np.float32
    np.testing.assert_allclose(table.logp_B, collected(tiny_model(), encoded).logp_B, atol=0.3)


def test_the_model_is_left_as_it_was(tiny_model: Any, encoded: list[Encoded]) -> None:
    model = tiny_model(attention_dropout=0.5).train()
    np.testing.assert_allclose(
        collected(model, encoded).logp_B, collected(tiny_model(), encoded).logp_B, atol=2e-5
    )
    assert model.training
