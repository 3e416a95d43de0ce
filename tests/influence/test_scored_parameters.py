from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.data.encoded import Encoded
from expunge.influence.row_scores import TWO_PASSES, Difficulty, score_rows

EACH = sorted(TWO_PASSES)


def projections(found: Difficulty) -> list[float]:
    return [item.projection for item in found.items]


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
