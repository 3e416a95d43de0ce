from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from expunge.config.short_names import SCORES
from expunge.config.stepping import MASK, bind_mask, bind_optimizer, bind_rules
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.optim import build
from expunge.optim.adamw import why_not_bitsandbytes
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.masks import MaskRule, WeightMask
from expunge.optim.random_smoothing import RandomSmoothing
from expunge.optim.sam import SAM
from expunge.optim.sophia import Sophia

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def section(spec: Any) -> dict[str, Any]:
    return {"handler": spec} if isinstance(spec, str) else spec


def build_optimizer(spec: Any, *args: Any) -> torch.optim.Optimizer:
    factory = build.optimizer_factory(bound_alone(bind_optimizer, section(spec)))
    assert factory is not None
    return factory(*args)


def build_rules(spec: Any, *args: Any) -> list[Any]:
    return build.build_rules(build.rules_of(bound_alone(bind_rules, (spec or {}).get("rules"))), *args)


def mask_of(spec: Any, *args: Any, **more: Any) -> WeightMask:
    return build.mask_of(bound_alone(bind_mask, section(spec))[MASK], *args, **more)


def choices(group: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((CONFIGS / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", choices("optimizer"))
def test_every_optimizer_of_the_configs_trains(small: Any, lab: Any, path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# @package trainer.optimizer\n")
    spec, model = yaml.safe_load(text), small()
    before = lab.weights(model)
    optimizer = build_optimizer(spec, model, lab.args_of())
    rules = build_rules(spec, optimizer)
    for rule in rules:
        rule.attach(model, optimizer)
    lab.train(model, optimizer, rules, 2)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert not lab.same_bits(before, lab.weights(model))


@pytest.mark.parametrize("path", choices("mask"))
def test_every_mask_of_the_configs_is_made(small: Any, lab: Any, path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# @package trainer.mask\n")
    spec, model = yaml.safe_load(text), small()
    sides = {name: [lab.make_side(2, name)] for name in ("forget", "retain")}
    if path.stem in ("none", "file"):
        assert spec in ({"handler": None}, {"path": "???"})
    else:
        mask = mask_of(spec, model, **sides)
        assert 0 < mask.num_allowed <= round(0.8 * mask.num_weights)
        assert isinstance(build_rules(None, torch.optim.SGD(model.parameters()), mask)[-1], MaskRule)


def test_names_are_those_of_the_configs() -> None:
    assert {path.stem for path in (CONFIGS / "mask").glob("*.yaml")} - {"none", "file"} == set(SCORES)


def test_adamw_equals_that_of_transformers_bit_for_bit(small: Any, lab: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta1=0.8,
        optim="adamw_torch_fused",
        report_to="none",
        use_cpu=True,
    )
    ours, theirs = small(), small()
    a = build_optimizer("adamw", ours, args)
    b = Trainer(theirs, args).create_optimizer()
    lab.train(ours, a, [], 3)
    lab.train(theirs, b, [], 3)
    assert lab.same_bits(lab.weights(ours), lab.weights(theirs))


def test_keywords_reach_the_optimizer(small: Any, lab: Any) -> None:
    optimizer = build_optimizer(
        {"handler": "sophia", "mode": "off", "betas": [0.9, 0.95], "rho": 0.03, "every": 5},
        small(),
        lab.args_of(),
    )
    assert isinstance(optimizer, Sophia)
    assert (optimizer.mode, optimizer.every, optimizer.defaults["betas"], optimizer.defaults["rho"]) == (
        "off",
        5,
        (0.9, 0.95),
        0.03,
    )
    adamw = build_optimizer(
        {"handler": "adamw", "betas": [0.5, 0.6]}, small(), lab.args_of(adam_epsilon=1e-6)
    )
    assert (adamw.defaults["betas"], adamw.defaults["eps"], adamw.defaults["fused"]) == (
        (0.5, 0.6),
        1e-6,
        True,
    )


def test_rules_come_in_order_and_the_mask_last(small: Any, lab: Any) -> None:
    model = small()
    spec = {"handler": "sophia", "rules": {"sam": {"rho": 0.1, "side": None}, "random_smoothing": None}}
    optimizer = build_optimizer(spec, model, lab.args_of())
    rules = build_rules(spec, optimizer, mask_of("random", model))
    assert [type(rule) for rule in rules] == [SophiaCurvature, SAM, MaskRule]
    assert isinstance(rules[1], SAM)
    assert (rules[1].rho, rules[1].side) == (0.1, None)
    other = {"smooth": {"handler": "expunge.optim.random_smoothing:RandomSmoothing", "samples": 3}}
    assert isinstance(build_rules({"handler": "sgd", "rules": other}, optimizer)[1], RandomSmoothing)


def test_nothing_chosen_leaves_the_trainers_own() -> None:
    assert build.optimizer_factory({}) is None
    assert build.rules_of({}) == []


def test_a_factory_builds_later(small: Any, lab: Any) -> None:
    factory = build.optimizer_factory(bound_alone(bind_optimizer, {"handler": "sgd"}))
    assert factory is not None
    assert isinstance(factory(small(), lab.args_of()), torch.optim.SGD)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("adamm", "did you mean 'adamw'"),
        ({"mode": "gnb"}, "no handler"),
        ({"handler": "sophia", "roh": 0.1}, "did you mean 'rho'"),
        ({"handler": "sophia", "lr": 1e-4}, "trainer.args.learning_rate=0.0001"),
        ({"handler": "adamw", "weight_decay": 0.1}, "trainer.args.weight_decay=0.1"),
        ("expunge.optim.sgd:adam", "unknown name in expunge.optim.sgd 'adam'"),
        ("nowhere.at.all:adam", "no module 'nowhere.at.all'"),
        ({"handler": "sophia", "mode": "gnp"}, "did you mean 'gnb'"),
    ],
)
def test_a_wrong_choice_is_reported(small: Any, lab: Any, spec: Any, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        build_optimizer(spec, small(), lab.args_of())


def test_wrong_rules_and_masks_are_reported(small: Any) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters())
    for rules, said in (({"samm": {}}, "did you mean 'sam'"), ({"sam": {"roh": 1}}, "did you mean 'rho'")):
        with pytest.raises(UserError, match=said):
            build_rules({"handler": "sgd", "rules": rules}, optimizer)
    for spec, said in (
        ("wagel", "did you mean 'wagle'"),
        ({"handler": "wagle", "ratio": 2}, "ratio=2: must be a number above 0 and at most 1"),
        ({"handler": "wagle", "params": "("}, "not a regular expression"),
    ):
        with pytest.raises(UserError, match=said):
            mask_of(spec, model)


def test_a_model_without_trainable_parameters_is_reported(small: Any, lab: Any) -> None:
    with pytest.raises(UserError, match="trainable"):
        build_optimizer("adamw", small().requires_grad_(False), lab.args_of())


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_bitsandbytes_is_replaced_with_a_warning_if_it_cannot_run(
    small: Any, lab: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Either bitsandbytes makes the step, or torch does and a warning says why; never without a warning."""
    with caplog.at_level(logging.WARNING):
        optimizer = build_optimizer(name, small(), lab.args_of())
    replaced = type(optimizer) is torch.optim.AdamW
    assert replaced or type(optimizer).__module__.startswith("bitsandbytes")
    assert replaced == ("torch's AdamW is used instead" in caplog.text)
    assert replaced or importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_the_reason_says_how_to_install_it() -> None:
    assert "expunge[quantized]" in why_not_bitsandbytes("AdamW8bit", {"cpu"})


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_bitsandbytes_updates_weights_on_a_gpu(small: Any, lab: Any, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = small().cuda()
    before = lab.weights(model)
    optimizer = build_optimizer(name, model, lab.args_of())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert type(optimizer).__module__.startswith("bitsandbytes")
    assert not lab.same_bits(before, lab.weights(model))
