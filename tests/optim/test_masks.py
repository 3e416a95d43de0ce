from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.optim import scores
from expunge.optim.attribution import build_mask, input_rms, mean_gradients
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.masks import MaskRule, WeightMask
from expunge.optim.sophia import Sophia
from expunge.optim.threshold import top_share


def test_scores_by_hand() -> None:
    """theta = (2, -3), g_f = (.5, -1), g_r = (.001, .002), mu = .001.

    theta - g_r / mu = (1, -5), times g_f = (.5, 5).
    """
    theta, g_f, g_r = torch.tensor([2.0, -3.0]), torch.tensor([0.5, -1.0]), torch.tensor([0.001, 0.002])
    assert scores.wagle(theta, g_f, g_r).tolist() == pytest.approx([0.5, 5.0])
    assert scores.wagle(theta, g_f, g_r, mu=0.002).tolist() == pytest.approx([0.75, 4.0])
    assert scores.magnitude(theta).tolist() == [2, 3]
    assert scores.forget_gradient(g_f).tolist() == [0.5, 1]
    assert scores.snip(theta, g_f).tolist() == [1, 3]
    assert scores.wanda(theta, torch.tensor([3.0, 0.5])).tolist() == [6, 1.5]


def test_the_top_share_by_hand() -> None:
    """Five of ten: 9, 8, 7, and the first two of the four 5s, one in `a` and one in `b`."""
    values = {"a": torch.tensor([[5.0, 9.0], [1.0, 0.0]]), "b": torch.tensor([8.0, 5.0, 5.0, 7.0, 5.0, 2.0])}
    chosen = top_share(values.__getitem__, ["a", "b"], 0.5)
    assert chosen["a"].tolist() == [[True, True], [False, False]]
    assert chosen["b"].tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 0.87, 1.0])
def test_the_top_share_is_that_of_a_sort(ratio: float) -> None:
    draw = torch.Generator().manual_seed(0)
    values = {
        str(n): torch.rand(n, 7, generator=draw).pow(9) * 10.0 ** float(n % 5 - 9) for n in range(1, 60)
    }
    values["zeros"] = torch.tensor([0.0, -0.0] * 300)
    values["coarse"] = (torch.rand(2000, generator=draw) * 8).round() * 1e-6
    chosen = top_share(values.__getitem__, list(values), ratio)
    flat, picked = (
        torch.cat([v.flatten() for v in values.values()]),
        torch.cat([chosen[name].flatten() for name in values]),
    )
    wanted = round(ratio * len(flat))
    assert int(picked.sum()) == wanted
    assert torch.equal(flat[picked].sort().values, flat.sort().values[len(flat) - wanted :])


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": (torch.rand(500, generator=torch.Generator().manual_seed(1)) * 20).round()}
    whole = top_share(values.__getitem__, ["a"], 0.3)["a"]
    monkeypatch.setattr("expunge.optim.threshold.CHUNK", 37)
    assert torch.equal(top_share(values.__getitem__, ["a"], 0.3)["a"], whole)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, math.nan, 1e-9])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="ratio"):
        top_share({"a": torch.ones(4)}.__getitem__, ["a"], ratio)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="of a is not finite"):
        top_share({"a": torch.tensor([1.0, math.inf])}.__getitem__, ["a"], 0.5)


def test_mean_gradients_do_not_depend_on_batches(small: Any, lab: Any) -> None:
    model, side = small(), lab.make_side(5, "mean")
    expected = torch.autograd.grad(
        lab.nll_sum(model, side) / side["label_mask"].sum(), list(model.parameters())
    )
    for size in (5, 2, 1):
        found = mean_gradients(model, lab.split(side, size))
        for (name, _), value in zip(model.named_parameters(), expected, strict=True):
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_input_rms_counts_real_tokens_only(small: Any, lab: Any, tied: bool) -> None:
    """Against inputs from the test's own hooks, row by row without padding; junk as padding has no effect."""
    model, side = small(tie_word_embeddings=tied), lab.make_side(4, "rms")
    kept: dict[str, list[Tensor]] = {}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: kept.setdefault(name, []).append(args[0][0])
        )
        for name, module in linears.items()
    ]
    for ids_T, mask_T in zip(side["input_ids"], side["attention_mask"], strict=True):
        with torch.no_grad():
            model(ids_T[mask_T.bool()].unsqueeze(0))
    for handle in handles:
        handle.remove()
    side["input_ids"] = torch.where(side["attention_mask"].bool(), side["input_ids"], 7)
    found = input_rms(model, lab.split(side, 3))
    names = {id(p): name for name, p in model.named_parameters()}
    assert set(found) == {names[id(module.weight)] for module in linears.values()}
    for name, module in linears.items():
        expected_D = torch.cat(kept[name]).square().mean(0).sqrt()
        assert found[names[id(module.weight)]].shape == module.weight.shape
        assert torch.allclose(found[names[id(module.weight)]][1], expected_D, rtol=1e-4)


ALL = [scores.wagle, scores.magnitude, scores.forget_gradient, scores.snip, scores.wanda, scores.uniform]


@pytest.mark.parametrize("score", ALL, ids=lambda score: score.__name__)
def test_a_mask_of_each_score(small: Any, lab: Any, score: Callable[..., Tensor]) -> None:
    model = small().train()
    before = lab.weights(model)
    sides = {name: [lab.make_side(3, name)] for name in ("forget", "retain")}
    mask = build_mask(model, score, ratio=0.3, **sides)
    assert lab.same_bits(before, lab.weights(model))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert set(mask.allowed) == set(before)
    linear = {name for name in before if "norm" not in name}
    scored = sum(before[name].numel() for name in (linear if score is scores.wanda else before))
    assert mask.num_allowed == round(0.3 * scored)
    if score is scores.wanda:
        assert not any(mask.allowed[name].any() for name in before if name not in linear)
    again = build_mask(small(), score, ratio=0.3, **sides)
    assert all(torch.equal(mask.allowed[name], again.allowed[name]) for name in before)


def test_wagle_from_a_model_is_the_formula(small: Any, lab: Any) -> None:
    model = small()
    forget, retain = lab.make_side(3, "forget"), lab.make_side(3, "retain")
    parameters = dict(model.named_parameters())
    g_f = torch.autograd.grad(
        lab.nll_sum(model, forget) / forget["label_mask"].sum(), list(parameters.values())
    )
    g_r = torch.autograd.grad(
        lab.nll_sum(model, retain) / retain["label_mask"].sum(), list(parameters.values())
    )
    flat = torch.cat(
        [((p - r / 1e-2) * f).abs().flatten() for p, f, r in zip(parameters.values(), g_f, g_r, strict=True)]
    )
    mask = build_mask(model, scores.wagle, ratio=0.25, mu=1e-2, forget=[forget], retain=[retain])
    picked = torch.cat([mask.allowed[name].flatten() for name in parameters])
    lowest, highest = flat[picked].min(), flat[~picked].max()
    assert lowest >= highest * (1 - 1e-4)


def test_data_that_a_score_needs_must_be_given(small: Any, lab: Any) -> None:
    with pytest.raises(UserError) as caught:
        build_mask(small(), scores.wagle)
    assert all(part in str(caught.value) for part in ("forget rows", "retain rows"))
    with pytest.raises(UserError, match="no weight to score"):
        build_mask(small(), scores.magnitude, params="nothing.*")
    with pytest.raises(UserError, match="regular expression"):
        build_mask(small(), scores.magnitude, params="(")


def optimizers(model: nn.Module) -> dict[str, Callable[[], torch.optim.Optimizer]]:
    p = list(model.parameters())
    return {
        "adamw": lambda: torch.optim.AdamW(p, 1e-2, weight_decay=0.5),
        "adamw_fused": lambda: torch.optim.AdamW(p, 1e-2, weight_decay=0.5, fused=True),
        "sgd": lambda: torch.optim.SGD(p, 1e-2, momentum=0.9, weight_decay=0.5),
        "rmsprop": lambda: torch.optim.RMSprop(p, 1e-3, weight_decay=0.5, momentum=0.5),
        "adamax": lambda: torch.optim.Adamax(p, 1e-3, weight_decay=0.5),
        "sophia": lambda: Sophia(p, 1e-2, weight_decay=0.5, every=2),
        "sophia_off": lambda: Sophia(p, 1e-2, weight_decay=0.5, mode="off"),
    }


@pytest.mark.parametrize("name", ["adamw", "adamw_fused", "sgd", "rmsprop", "adamax", "sophia", "sophia_off"])
def test_frozen_weights_keep_their_bits(small: Any, lab: Any, name: str) -> None:
    """With weight decay .5 and momentum from two steps before the mask.

    The frozen weights keep their bits; the allowed weights move.
    """
    model = small()
    optimizer = optimizers(model)[name]()
    rules = [SophiaCurvature(optimizer)] if isinstance(optimizer, Sophia) else []
    lab.train(model, optimizer, rules, 2)
    before = lab.weights(model)
    mask = build_mask(model, scores.uniform, ratio=0.4)
    rule = mask.rule()
    rule.attach(model, optimizer)
    lab.train(model, optimizer, [*rules, rule], 3, start=2)
    moved, allowed = 0, 0
    for key, value in lab.weights(model).items():
        frozen = ~mask.allowed[key]
        assert torch.equal(value[frozen].view(torch.int32), before[key][frozen].view(torch.int32))
        moved += int((value != before[key])[mask.allowed[key]].sum())
        allowed += int(mask.allowed[key].sum())
    assert moved > 0.97 * allowed
    assert rule._values == []


@pytest.mark.parametrize("name", ["adamw_fused", "sgd", "sophia"])
def test_a_mask_of_all_weights_changes_no_bit(small: Any, lab: Any, name: str) -> None:
    found = []
    for masked in (False, True):
        model = small()
        optimizer = optimizers(model)[name]()
        rules: list[Any] = [SophiaCurvature(optimizer)] if isinstance(optimizer, Sophia) else []
        if masked:
            rules.append(build_mask(model, scores.uniform, ratio=1.0).rule())
            rules[-1].attach(model, optimizer)
        norms = lab.train(model, optimizer, rules, 3)
        found.append((lab.weights(model), norms))
    assert lab.same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_clip_norm_counts_only_what_may_be_updated(small: Any, lab: Any) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    (whole,) = lab.train(model, optimizer, [], 1)
    batches = [
        {side: lab.make_side(2, f"{side} 0 {part}") for side in ("forget", "retain")} for part in range(2)
    ]
    lab.gradient_difference(model, batches)()
    mask = build_mask(small(), scores.uniform, ratio=0.2)
    expected = torch.cat([p.grad[mask.allowed[name]] for name, p in model.named_parameters()]).norm().item()
    model.zero_grad()
    rule = mask.rule()
    rule.attach(model, optimizer)
    (found,) = lab.train(model, optimizer, [rule], 1)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < 0.9 * whole


def test_an_infinite_gradient_of_a_frozen_weight_has_no_effect() -> None:
    model = nn.Linear(3, 1, bias=False)
    mask = WeightMask({"weight": torch.tensor([[True, False, True]])}, {}, "")
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    rule = mask.rule()
    rule.attach(model, optimizer)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[1.0, math.inf, math.nan]])
    optimizer.step()
    assert model.weight[0, 1] == before[0, 1]
    assert model.weight[0, 0] != before[0, 0]
    assert model.weight[0, 2].isnan(), "an allowed weight gets what its gradient says"


def test_bf16_weights_keep_their_bits(small: Any) -> None:
    model = small().bfloat16()
    mask = build_mask(model, scores.magnitude, ratio=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    mask.rule().attach(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(
            p[~mask.allowed[name]].view(torch.int16), before[name][~mask.allowed[name]].view(torch.int16)
        )
        assert bool((p != before[name])[mask.allowed[name]].all())


def test_a_mask_over_an_adapter(small: Any, lab: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = small()
    original = lab.weights(base)
    torch.manual_seed(0)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    sides = {name: [lab.make_side(3, name)] for name in ("forget", "retain")}
    for score in (scores.wagle, scores.wanda):
        mask = build_mask(model, score, ratio=0.5, **sides)
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        assert set(mask.allowed) == set(trained)
        assert all("lora_" in name for name in trained)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.5
        )
        rule = mask.rule()
        rule.attach(model, optimizer)
        lab.train(model, optimizer, [rule], 2)
        for name, p in model.named_parameters():
            if name in trained:
                assert torch.equal(p[~mask.allowed[name]], trained[name][~mask.allowed[name]])
                assert not mask.allowed[name].any() or not torch.equal(p, trained[name])
    base_now = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert lab.same_bits(original, base_now)


def saved(small: Any, folder: Path) -> tuple[Path, WeightMask]:
    mask = build_mask(small(), scores.magnitude, ratio=0.3)
    mask.save(folder / "mask.safetensors")
    return folder / "mask.safetensors", mask


def test_a_mask_round_trips_with_its_settings(small: Any, tmp_path: Path) -> None:
    path, mask = saved(small, tmp_path)
    read = WeightMask.load(path, small())
    assert all(torch.equal(read.allowed[name], allowed) for name, allowed in mask.allowed.items())
    assert read.settings == mask.settings
    assert mask.settings == {
        "score": "expunge.optim.scores:magnitude",
        "options": {},
        "ratio": 0.3,
        "params": None,
        "seed": 0,
    }
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["mask"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bool}  # noqa: SIM118
    assert head["num_allowed"] == round(0.3 * head["num_weights"])
    WeightMask.load(path, small(1), fingerprint=mask.model)


def test_a_mask_of_another_model_is_refused(small: Any, tmp_path: Path) -> None:
    path, mask = saved(small, tmp_path)
    with pytest.raises(UserError, match=f"made for weights with fingerprint {mask.model}"):
        WeightMask.load(path, small(1))
    with pytest.raises(UserError, match=r"gate_proj.weight: \[24, 16\] in .*, \[32, 16\] in the model"):
        WeightMask.load(path, small(intermediate_size=32))
    with pytest.raises(UserError, match=r"trains lm_head.weight, which .* does not have"):
        WeightMask.load(path, small(tie_word_embeddings=False))
    frozen = small()
    frozen.model.norm.weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"model.norm.weight, which the model does not train"):
        WeightMask.load(path, frozen)


def test_a_file_that_is_no_mask_is_refused(small: Any, tmp_path: Path) -> None:
    path, _ = saved(small, tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:100])
    for file, said in ((tmp_path / "none", "no mask file"), (other, "not a mask"), (broken, "damaged")):
        with pytest.raises(UserError, match=said):
            WeightMask.load(file, small())


def test_a_mask_gives_its_rule(small: Any) -> None:
    assert isinstance(build_mask(small(), scores.uniform).rule(), MaskRule)
