from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from expunge.core.errors import UserError
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.influence.gradient import row_losses, token_nll
from expunge.influence.row_batches import Reduction
from expunge.influence.row_scores import TWO_PASSES, Choice, Difficulty, score_rows
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


def test_the_model_is_not_changed_and_dropout_is_off(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    model = tiny_model(attention_dropout=0.5).train()
    model.lm_head.eval()
    frozen = model.model.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (score_rows(model, rows(), algorithm=algorithm) for algorithm in ("naive", "jvp"))
    assert projections(first) == pytest.approx(projections(second), rel=1e-5)
    assert model.training
    assert not model.lm_head.training
    assert not frozen.requires_grad
    assert "model.norm.weight" in first.gradient, "frozen weights are still parameters of the model"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in model.lm_head.__dict__


def test_a_regular_expression_chooses_the_parameters(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    found = score_rows(tiny_model(), rows(), params=r"model\.layers\.1\.mlp\..*")
    assert set(found.gradient) == {
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
    assert found.scorer["params"] == r"model\.layers\.1\.mlp\..*"
    oracle = score_rows(tiny_model(), rows(), params=r"model\.layers\.1\.mlp\..*", algorithm="naive")
    assert projections(found) == pytest.approx(projections(oracle), rel=1e-5)
    head = {
        name: score_rows(
            tiny_model(tie_word_embeddings=False), rows(), params="lm_head.weight", algorithm=name
        )
        for name in EACH
    }
    assert projections(head["jvp"]) == pytest.approx(projections(head["naive"]), rel=1e-5)


@pytest.fixture
def adapted(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """A tiny model with LoRA; B is 0, or random as if trained."""
    pytest.importorskip("peft")
    from expunge.models.adapters import attach_adapter

    def build(seed: int = 0, trained: bool = True) -> Any:
        model = attach_adapter(
            tiny_model(), {"type": "lora", "r": 2, "dropout": 0.3}, for_training=True, seed=seed
        )
        if trained:
            draw = torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
        return model

    return build


def test_the_scores_differentiate_by_a_trained_adapter(
    adapted: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    model = adapted()
    found = {
        algorithm: score_rows(model, rows(), algorithm=algorithm, max_tokens=40)
        for algorithm in (*EACH, "lora", "auto")
    }
    oracle = found["naive"]
    for algorithm, each in found.items():
        assert all(".lora_" in name for name in each.gradient)
        assert each.scorer["params"] == "lora"
        assert not each.notices
        assert projections(each) == pytest.approx(projections(oracle), rel=1e-5), algorithm
        assert [item.loss for item in each.items] == pytest.approx(
            [item.loss for item in oracle.items], rel=1e-6
        )
    single = found["auto"]
    assert single.scorer["algorithm"] == "lora"
    assert [item.grad_norm for item in single.items] == pytest.approx(
        [item.grad_norm for item in oracle.items], rel=1e-5
    )
    assert [item.cosine for item in single.items] == pytest.approx(
        [item.cosine for item in oracle.items], rel=1e-5
    )
    everything = score_rows(model, rows(), params="all")
    assert len(everything.gradient) > len(found["jvp"].gradient)


def test_a_fresh_adapter_is_left_out_or_reported(
    adapted: Callable[..., Any], tiny_model: Any, rows: Callable[..., list[Encoded]]
) -> None:
    model = adapted(trained=False)
    found = score_rows(model, rows())
    assert not [name for name in found.gradient if ".lora_" in name]
    assert projections(found) == pytest.approx(projections(score_rows(tiny_model(), rows())), rel=1e-5), (
        "the scores of the base"
    )
    asked = score_rows(model, rows(), params="lora")
    assert "B = 0" in asked.notices[0]
    assert "difficulty.params=all" in asked.notices[0]
    assert all(not value.any() for name, value in asked.gradient.items() if "lora_A" in name)


def naming(error: pytest.ExceptionInfo[UserError]) -> str:
    return "\n".join(str(fault) for fault in error.value.faults)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"params": "lora"}, "has no LoRA adapter"),
        ({"params": r"model\.layer\..*"}, "matches the whole name of no parameter of LlamaForCausalLM"),
        ({"params": "("}, "is not a regular expression"),
    ],
)
def test_what_is_refused(
    settings: dict[str, str], said: str, tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    with pytest.raises(UserError) as error:
        score_rows(tiny_model(num_hidden_layers=1), rows(2), **settings)
    assert said in naming(error)


def test_rows_that_cannot_be_scored_are_refused(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    model = tiny_model(num_hidden_layers=1)
    first, second = rows(2)
    bare = replace(second, label_mask=(False,) * len(second))
    for encoded, said in (
        ([], "no row to score"),
        ([first, bare], "has no label token"),
        ([first, first], "the same row id"),
    ):
        with pytest.raises(UserError, match=said):
            score_rows(model, encoded)


def test_a_gradient_that_is_zero_or_not_finite_is_refused(by_hand: tuple[nn.Module, list[Encoded]]) -> None:
    """The gradient of the head is an outer product with the hidden state, which is theta = 0."""
    model, encoded = by_hand
    with pytest.raises(UserError, match="the gradient of the forget set is zero") as error:
        score_rows(model, encoded, params="head.weight")
    assert "difficulty.params" in naming(error)
    model.body.theta.data[0] = torch.nan
    with pytest.raises(UserError, match="the loss of 3 rows is not finite"):
        score_rows(model, encoded, params=THETA)


def test_attention_without_a_forward_derivative(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    """Flash attention cannot run here; the choice depends only on the name of the implementation."""
    from expunge.influence import difficulty

    assert difficulty._algorithm("auto", "sdpa") == "jvp"
    assert difficulty._algorithm("auto", "flash_attention_2") == "ghost"
    assert difficulty._algorithm("naive", "flash_attention_2") == "naive"
    with pytest.raises(UserError, match="flash_attention_2 attention has no forward derivative"):
        difficulty._algorithm("jvp", "flash_attention_2")
    assert set(get_args(Choice)) == {"auto", "lora", *TWO_PASSES}


def test_an_operation_without_a_forward_derivative_is_reported(
    by_hand: tuple[nn.Module, list[Encoded]],
) -> None:
    class NoRule(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    model, encoded = by_hand
    plain = model.forward
    model.forward = lambda **inputs: SimpleNamespace(logits=NoRule.apply(plain(**inputs).logits))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="an operation without a forward derivative") as error:
        score_rows(model, encoded, params=THETA, algorithm="jvp")
    assert "difficulty.algorithm=naive" in naming(error)


def test_parameters_that_are_used_outside_their_module(
    by_hand: tuple[nn.Module, list[Encoded]], tiny_model: Callable[..., Any]
) -> None:
    """`ghost` and `lora` observe calls of modules; other uses are refused, never silently ignored."""

    class Outside(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.body = model, model.body

        def get_output_embeddings(self) -> nn.Module:
            return self.model.head

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=self.model.head(self.body.theta.expand(*input_ids.shape, 2)))

    model, encoded = by_hand
    with pytest.raises(
        UserError, match=r"used outside the module they belong to, such as model\.body\.theta"
    ):
        score_rows(Outside(model), encoded, params=r"model\.body\.theta", algorithm="ghost")
    with pytest.raises(UserError, match="do not belong only to Linear modules"):
        score_rows(model, encoded, params=THETA, algorithm="lora")
    with pytest.raises(UserError, match="do not belong only to Linear modules") as error:
        score_rows(tiny_model(), encoded, params="model.embed_tokens.weight", algorithm="lora")
    assert "embed_tokens" in naming(error), "tied with the head, which is a Linear"


def test_lora_handles_any_linear_weights(
    tiny_model: Callable[..., Any], rows: Callable[..., list[Encoded]]
) -> None:
    model, chosen = tiny_model(attention_bias=True), r"model\.layers\.\d\.self_attn\..*"
    single, oracle = (
        score_rows(model, rows(), params=chosen, algorithm=algorithm, max_tokens=30)
        for algorithm in ("lora", "naive")
    )
    assert any(name.endswith("bias") for name in single.gradient)
    assert projections(single) == pytest.approx(projections(oracle), rel=1e-5)
    assert single.norm == pytest.approx(oracle.norm, rel=1e-6)
