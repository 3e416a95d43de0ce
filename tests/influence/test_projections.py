from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import nn

from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.influence.gradient import row_losses, token_nll
from expunge.influence.row_batches import Reduction
from expunge.influence.row_scores import TWO_PASSES, Difficulty, score_rows
from expunge.models.outputs import label_outputs

EACH = sorted(TWO_PASSES)


THETA = "body.theta"


def projections(found: Difficulty) -> list[float]:
    return [item.projection for item in found.items]


@pytest.mark.parametrize("algorithm", EACH)
def test_two_parameters_by_hand(algorithm: str, by_hand: tuple[nn.Module, list[Encoded]]) -> None:
    """Logits (a, b, 0) at a = b = 0.

    So p = 1/3 each, and the gradient of -log p_y is p - onehot(y) without its third entry.
    Label 0: (-2/3, 1/3). Label 1: (1/3, -2/3). Labels 0 and 2: the mean of (-2/3, 1/3) and (1/3, 1/3) =
    (-1/6, 1/3). g = their mean = ((-4 + 2 - 1)/18, (2 - 4 + 2)/18) = (-1/6, 0), so ||g|| = 1/6 and the
    projections are minus the first entries: 2/3, -1/3, 1/6, whose mean is 1/6 again. Every loss is log 3. The
    norms: sqrt(5)/3 twice, and sqrt(1/36 + 4/36) = sqrt(5)/6.
    """
    model, encoded = by_hand
    found = score_rows(model, encoded, algorithm=algorithm, params=THETA)
    assert found.norm == pytest.approx(1 / 6, rel=1e-6)
    torch.testing.assert_close(found.gradient[THETA], torch.tensor([-1 / 6, 0.0]))
    assert projections(found) == pytest.approx([2 / 3, -1 / 3, 1 / 6], rel=1e-6)
    assert [item.score for item in found.items] == pytest.approx([2 / 3, 1 / 3, 1 / 6], rel=1e-6)
    assert [item.loss for item in found.items] == pytest.approx([math.log(3)] * 3, rel=1e-6)
    assert [(item.uid, item.row, item.n_tokens) for item in found.items] == [
        ("row0", 0, 1),
        ("row1", 1, 1),
        ("row2", 2, 2),
    ]
    if algorithm == "naive":
        assert [item.grad_norm for item in found.items] == pytest.approx(
            [5**0.5 / 3, 5**0.5 / 3, 5**0.5 / 6], rel=1e-6
        )
        assert [item.cosine for item in found.items] == pytest.approx(
            [2 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5], rel=1e-6
        )


@pytest.mark.parametrize("algorithm", EACH)
def test_two_parameters_by_hand_with_token_sums(
    algorithm: str, by_hand: tuple[nn.Module, list[Encoded]]
) -> None:
    """The third gradient is the sum (-1/3, 2/3).

    So g = ((-2 + 1 - 1)/9, (1 - 2 + 2)/9) = (-2/9, 1/9), ||g|| = sqrt(5)/9. <g_i, g> = (4 + 1)/27,
    (-2 - 2)/27, (2 + 2)/27; times 9/sqrt(5): 5, -4, 4 over 3 sqrt(5). Rows 1 and 2 now have the same |score|;
    signed scores distinguish them.
    """
    model, encoded = by_hand
    found = score_rows(model, encoded, algorithm=algorithm, params=THETA, reduction="token_sum", signed=True)
    assert found.norm == pytest.approx(5**0.5 / 9, rel=1e-6)
    expected = [sign / (3 * 5**0.5) for sign in (5, -4, 4)]
    assert projections(found) == pytest.approx(expected, rel=1e-6)
    assert [item.score for item in found.items] == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_the_nll_and_keeps_the_digits_of_a_certain_label() -> None:
    """Logits (20, 0, 0), label 0: sum_(v != y) p_v = 2 e^-20 / (1 + 2 e^-20) = 4.122307e-9.

    In float32, 1 - p would be 0.
    """
    logits = torch.tensor([[[20.0, 0.0, 0.0], [0.3, -1.0, 2.0], [0.0, 30.0, -5.0]]], requires_grad=True)
    label = torch.tensor([[0, 1, 0]])
    loss = token_nll(logits, label)
    exact = -logits.detach().double().log_softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0, 0, 0].item() == pytest.approx(-4.122307e-9, rel=1e-5)
    expected = logits.detach().double().softmax(-1) - torch.nn.functional.one_hot(label, 3)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-15)


def families(tiny_model: Callable[..., Any]) -> dict[str, Any]:
    """Models with a tied head, an untied head, a head with bias, and a head with a soft cap after it."""
    from transformers import AutoModelForCausalLM, Gemma2Config, PhiConfig

    common = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    gemma = {
        **common,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "final_logit_softcapping": 5.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "tied": tiny_model(),
            "untied, eager": tiny_model(tie_word_embeddings=False, attn_implementation="eager"),
            "bias": AutoModelForCausalLM.from_config(
                PhiConfig(**common, initializer_range=0.2, pad_token_id=0)
            ),
            "soft cap": AutoModelForCausalLM.from_config(
                Gemma2Config(**gemma, initializer_range=0.2, pad_token_id=0)
            ),
        }


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize("family", ["tied", "untied, eager", "bias", "soft cap"])
def test_every_algorithm_equals_the_oracle_to_1e_5(
    family: str, reduction: str, tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    model = families(tiny_model)[family]
    oracle = score_rows(model, rows(), algorithm="naive", reduction=reduction)
    for algorithm in EACH:
        found = score_rows(model, rows(), algorithm=algorithm, reduction=reduction, max_tokens=40)
        assert found.norm == pytest.approx(oracle.norm, rel=1e-5)
        assert projections(found) == pytest.approx(projections(oracle), rel=1e-5)
        assert sum(projections(found)) / len(found.items) == pytest.approx(found.norm, rel=1e-5), (
            "the mean projection is ||g||"
        )


def test_algorithms_agree_on_memorised_rows(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    """The model is trained until losses and gradients are nearly zero."""
    model, encoded = tiny_model(), rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        row_losses(label_outputs(model, collate(encoded, 0)), "token_mean").sum().backward()
        optimizer.step()
    oracle = score_rows(model, encoded, algorithm="naive")
    assert max(item.loss for item in oracle.items) < 0.02
    for algorithm in EACH:
        found = score_rows(model, encoded, algorithm=algorithm)
        assert projections(found) == pytest.approx(projections(oracle), rel=1e-5), algorithm


def test_a_finite_difference_agrees(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    """The derivative of l_i along g / ||g|| is a central difference of losses; the only gradient is g."""
    model = tiny_model()
    found = score_rows(model, rows())
    named = dict(model.named_parameters())

    def losses(step: float) -> torch.Tensor:
        with torch.no_grad():
            for name, value in found.gradient.items():
                named[name].add_(value, alpha=step / found.norm)
            loss_B = torch.cat(
                [row_losses(label_outputs(model, collate([row], 0)), "token_mean") for row in rows()]
            )
            for name, value in found.gradient.items():
                named[name].sub_(value, alpha=step / found.norm)
        return loss_B.double()

    step = 2e-3
    torch.testing.assert_close(
        torch.tensor(projections(found)).double(),
        (losses(step) - losses(-step)) / (2 * step),
        rtol=2e-3,
        atol=2e-3,
    )


@pytest.mark.parametrize("algorithm", EACH)
def test_batches_and_order_do_not_matter(
    algorithm: str, tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    """If g were the average of token means of batches, it would depend on both."""
    model, encoded = tiny_model(), rows()
    whole = score_rows(model, encoded, algorithm=algorithm, max_tokens=10_000)
    small = score_rows(model, encoded, algorithm=algorithm, max_tokens=1)
    assert small.norm == pytest.approx(whole.norm, rel=1e-6)
    assert projections(small) == pytest.approx(projections(whole), rel=1e-5)
    back = score_rows(model, encoded[::-1], algorithm=algorithm, max_tokens=25)
    assert [item.uid for item in back.items] == [row.row_id for row in encoded[::-1]]
    assert projections(back)[::-1] == pytest.approx(projections(whole), rel=1e-5)


@pytest.mark.parametrize("factor", [-1.0, 3.0, -0.25])
def test_a_sign_of_the_loss_cancels_and_a_scale_keeps_the_ranking(
    factor: float,
    tiny_model: Callable[..., Any],
    rows: Callable[..., list[Encoded]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """<c g_i, c g> / ||c g|| = |c| projection_i: the sign cancels, and all rows have the same scale."""
    from expunge.influence import gradient
    from expunge.influence import projections as module

    model, encoded = tiny_model(), rows()
    plain = projections(score_rows(model, encoded, algorithm="naive"))

    def scaled(outputs: Any, reduction: str) -> torch.Tensor:
        return factor * row_losses(outputs, reduction)

    for room in (gradient, module):
        monkeypatch.setattr(room, "row_losses", scaled)
    other = projections(score_rows(model, encoded, algorithm="naive"))
    assert other == pytest.approx([abs(factor) * value for value in plain], rel=1e-5)
