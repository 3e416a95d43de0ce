from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.influence.row_scores import TWO_PASSES, Choice, Difficulty, score_rows

THETA = "body.theta"


def projections(found: Difficulty) -> list[float]:
    return [item.projection for item in found.items]


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
    from expunge.influence import row_scores

    assert row_scores._algorithm("auto", "sdpa") == "jvp"
    assert row_scores._algorithm("auto", "flash_attention_2") == "ghost"
    assert row_scores._algorithm("naive", "flash_attention_2") == "naive"
    with pytest.raises(UserError, match="flash_attention_2 attention has no forward derivative"):
        row_scores._algorithm("jvp", "flash_attention_2")
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
