"""Each reference of an adapted model equals a frozen deep copy and does not change the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import UserError
from expunge.core.needs import parse_need
from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.lm.logprobs import token_logp
from expunge.models.adapter_reference import (
    AdapterOff,
    FrozenAdapter,
    plan_for,
    reference_for,
    starts_at_zero,
)
from expunge.models.adapters import attach_adapter, lora_layers, save_model
from expunge.models.outputs import label_outputs, side_outputs
from expunge.models.reference import FrozenCopy

torch.set_num_threads(1)
LOGITS = [parse_need("ref_retain_logits_BNV"), parse_need("retain_logits_BNV")]
LOGP = [parse_need("ref_forget_seq_logp_B"), parse_need("forget_seq_logp_B")]


@pytest.fixture(scope="module")
def side() -> Any:
    rows = [(5, 3, 9, 11, 7, 20, 31), (8, 6, 12, 2, 40), (9, 10, 13)]
    items = [
        Encoded(ids, (False,) * 2 + (True,) * (len(ids) - 2), None, 2, f"r{n}", n)
        for n, ids in enumerate(rows)
    ]
    return collate(items, 4)


@pytest.fixture
def adapted(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """Builds a model with dropout everywhere and an adapter, new or already trained."""

    def build(trained: bool = False, **section: Any) -> Any:
        base = tiny_model(seed=1, attention_dropout=0.4)
        model = attach_adapter(base, {"type": "lora", "r": 4, "dropout": 0.4, **section}, for_training=True)
        if trained:
            change(model, seed=8)
        return model

    return build


def change(model: Any, seed: int) -> None:
    """Change all trained parameters, as training does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)


KINDS = [(AdapterOff, False), (FrozenAdapter, True), (FrozenAdapter, False)]


@pytest.mark.parametrize(("kind", "trained"), KINDS)
def test_equals_a_frozen_deep_copy_before_and_after_training(
    kind: Any, trained: bool, adapted: Callable[..., Any], side: Any
):
    model = adapted(trained)
    frozen = FrozenCopy(model)
    reference = kind(model, hidden=r"model\.layers\.1")
    model.train()
    for _ in range(2):
        expected, found = frozen.outputs("forget", side), reference.outputs("forget", side)
        mask_BN = label_outputs(frozen.model, side).mask_BN
        assert (found.logp_BN - expected.logp_BN)[mask_BN].abs().max() <= 1e-6
        assert (found.logits_BNV - expected.logits_BNV)[mask_BN].abs().max() <= 1e-6
        assert found.hidden_BTD.shape == (3, 7, 32)
        assert not found.logits_BNV.requires_grad
        change(model, seed=9)
    now = label_outputs(copy.deepcopy(model).eval(), side)
    assert not torch.allclose(
        token_logp(now.logits_BNV, now.label_BN)[mask_BN], found.logp_BN[mask_BN], atol=1e-2
    )


@pytest.mark.parametrize(("kind", "trained"), KINDS)
def test_the_pass_leaves_no_trace(kind: Any, trained: bool, adapted: Callable[..., Any], side: Any):
    """Checks modes, active adapter, `requires_grad`, and gradients of a forward pass around the reference."""
    model = adapted(trained)
    reference = kind(model)
    model.train()
    model.get_base_model().model.layers[0].eval()
    frozen_by_user = next(iter(lora_layers(model).values())).lora_A["default"].weight.requires_grad_(False)

    def state() -> Any:
        modes = [module.training for module in model.modules()]
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return (
            modes,
            trained,
            model.active_adapter,
            [layer.active_adapters for layer in lora_layers(model).values()],
        )

    def gradients(between: Callable[[], Any]) -> list[Any]:
        model.zero_grad()
        torch.manual_seed(4)
        out = label_outputs(model, side)
        between()
        (
            -token_logp(out.logits_BNV, out.label_BN)[out.mask_BN].sum()
            + label_outputs(model, side).logits_BNV.square().sum()
        ).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    before, expected = state(), gradients(lambda: None)
    assert all("lora_" in name and "reference" not in name for name in before[1])
    found = gradients(lambda: reference.outputs("forget", side))
    assert state() == before
    assert frozen_by_user.grad is None
    assert all(
        gradient is not None and torch.equal(gradient, other)
        for gradient, other in zip(found, expected, strict=True)
    )


def test_a_failing_pass_leaves_no_trace_either(adapted: Callable[..., Any], side: Any):
    for reference in (AdapterOff(adapted()), FrozenAdapter(adapted(True))):
        reference.hidden = "nothing"
        trained = [parameter.requires_grad for parameter in reference.model.parameters()]
        with pytest.raises(UserError, match="matches no module"):
            reference.outputs("forget", side)
        assert [parameter.requires_grad for parameter in reference.model.parameters()] == trained
        assert reference.model.active_adapter == "default"
        assert not any(layer.disable_adapters for layer in lora_layers(reference.model).values())


def test_a_frozen_adapter_is_neither_trained_nor_saved_nor_drawn(
    adapted: Callable[..., Any], side: Any, tmp_path: Path
):
    model = adapted(True)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    FrozenAdapter(model)
    assert torch.equal(torch.get_rng_state(), before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("reference" in name for name in trained)
    save_model(model, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.is_dir()) == []
    expected = label_outputs(model, side).logits_BNV
    save_model(model, tmp_path / "merged", merge=True)
    merged = type(model.get_base_model()).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(label_outputs(merged, side).logits_BNV, expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="already has a frozen adapter"):
        FrozenAdapter(model)


def test_which_adapters_start_at_zero(adapted: Callable[..., Any], tiny_model: Callable[..., Any]):
    assert starts_at_zero(adapted())
    assert starts_at_zero(adapted(target_modules=["q_proj", "embed_tokens"]))
    assert not starts_at_zero(adapted(True))
    assert not starts_at_zero(tiny_model())
    assert not starts_at_zero(adapted(bias="all"))
    one_layer = adapted()
    with torch.no_grad():
        lora_layers(one_layer)["model.layers.1.mlp.up_proj"].lora_B["default"].weight[0, 0] = 1e-8
    assert not starts_at_zero(one_layer)


PLANS = [
    # needs, adapter, asked -> plan
    ([], "new", "auto", "none"),
    ([], "none", "frozen", "none"),
    (LOGP, "none", "auto", "cached"),
    (LOGP, "trained", "auto", "cached"),
    (LOGP, "new", "adapter_off", "adapter_off"),
    (LOGITS, "none", "auto", "frozen"),
    (LOGITS, "new", "auto", "adapter_off"),
    (LOGITS, "trained", "auto", "frozen_adapter"),
    (LOGITS, "biased", "auto", "frozen"),
    (LOGITS, "new", "frozen_adapter", "frozen_adapter"),
    (LOGITS, "trained", "frozen", "frozen"),
    (LOGITS, "trained", "adapter_off", "does not start at zero"),
    (LOGITS, "none", "adapter_off", "has no adapter"),
    (LOGITS, "none", "frozen_adapter", "has no adapter"),
    (LOGITS, "biased", "adapter_off", "biases of the base"),
    (LOGITS, "biased", "frozen_adapter", "biases of the base"),
    (LOGITS, "new", "cached", "reads ref_retain_logits_BNV"),
    (LOGITS, "new", "adapter", "did you mean 'adapter_off'"),
]


@pytest.mark.parametrize(("needs", "state", "asked", "plan"), PLANS)
def test_the_plan(
    needs: Any,
    state: str,
    asked: str,
    plan: str,
    adapted: Callable[..., Any],
    tiny_model: Callable[..., Any],
    side: Any,
):
    build = {
        "none": tiny_model,
        "new": adapted,
        "trained": lambda: adapted(True),
        "biased": lambda: adapted(bias="all"),
    }
    model = build[state]()
    if " " in plan:
        with pytest.raises(UserError, match=plan):
            plan_for(model, needs, asked)
        return
    assert plan_for(model, needs, asked) == plan
    kinds = {
        "none": type(None),
        "cached": str,
        "adapter_off": AdapterOff,
        "frozen_adapter": FrozenAdapter,
        "frozen": FrozenCopy,
    }
    reference: Any = reference_for(model, needs, cached=lambda: "the cached one", asked=asked)  # type: ignore[arg-type, return-value]
    assert isinstance(reference, kinds[plan])
    if plan in ("adapter_off", "frozen_adapter", "frozen"):
        assert torch.equal(reference.outputs("retain", side).logits_BNV, side_outputs(model, side).logits_BNV)


def test_adapter_off_is_refused_for_a_trained_adapter(adapted: Callable[..., Any]):
    with pytest.raises(UserError, match="does not start at zero"):
        AdapterOff(adapted(True))


def test_modules_trained_as_a_whole_are_copied_with_the_frozen_adapter(
    tiny_model: Callable[..., Any], side: Any
):
    """An adapter made by other software may have `modules_to_save` of peft."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        tiny_model(seed=1), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    )
    model.eval()
    with pytest.raises(UserError, match="trained as a whole"):
        AdapterOff(model)
    change(model, seed=3)
    frozen, reference = FrozenCopy(model), FrozenAdapter(model)
    change(model, seed=4)
    assert torch.equal(
        reference.outputs("forget", side).logits_BNV, frozen.outputs("forget", side).logits_BNV
    )
