"""LoRA: new adapters, trained ones continued, saved and merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapter_runs import LORA, args, logits, train
from safetensors.torch import load_file, save_file

from expunge.config.location import config_roots
from expunge.core.errors import UserError
from expunge.lm.labels import label_index
from expunge.lm.logprobs import token_logp
from expunge.models import load as load_module
from expunge.models.adapter_args import AdapterArgs
from expunge.models.adapter_folder import sampled_fingerprint
from expunge.models.adapters import attach_adapter, lora_layers, save_model
from expunge.models.fingerprint import model_fingerprint
from expunge.models.load import load_model
from expunge.models.outputs import label_outputs
from expunge.models.tokenizer import load_tokenizer

# New


def test_a_new_adapter_is_on_all_linear_layers_and_changes_nothing(base: Path, side: Any):
    plain = load_model(args(base), for_training=False).model
    model = load_model(args(base), {"type": "lora"}, for_training=True).model
    linear = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(lora_layers(model)) == linear - {"lm_head"}
    assert torch.equal(logits(model, side), logits(plain, side))
    assert not model.training
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.05, "none")
    # r * (inputs + outputs) of each layer, by hand: hidden 32, intermediate 64, 2 of 4 key and value heads of
    # width 8, 2 layers.
    per_layer = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    assert (
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        == 8 * 2 * per_layer
    )
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters())


def test_the_draw_depends_only_on_seed_and_layer(base: Path):
    def drawn(seed: int, **more: Any) -> dict[str, torch.Tensor]:
        model = load_model(args(base), {**LORA, **more}, for_training=True, seed=seed).model
        return {name: layer.lora_A["default"].weight.detach() for name, layer in lora_layers(model).items()}

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, fewer, other = drawn(0), drawn(0, target_modules=["q_proj"]), drawn(1)
    assert all(
        torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first
    )
    assert set(fewer) == {name for name in first if name.endswith("q_proj")}
    assert all(torch.equal(first[name], fewer[name]) for name in fewer)
    bound = 1 / 32**0.5
    largest = first["model.layers.0.self_attn.q_proj"].abs().max().item()
    assert bound * 0.9 < largest <= bound


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.(q|v)_proj"])
def test_target_modules_by_name_and_by_pattern(base: Path, targets: Any):
    model = load_model(args(base), {**LORA, "target_modules": targets}, for_training=True).model
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == {"q_proj", "v_proj"}
    assert len(lora_layers(model)) == 4


def test_the_frozen_base_is_kept_in_torch_dtype_and_the_adapter_in_float32(
    base: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("expunge.models.precision.supports_bf16", lambda _: True)
    notices: list[str] = []
    loaded = load_model(args(base, torch_dtype="bfloat16"), LORA, for_training=True, notices=notices)
    dtypes = {("lora_" in name, parameter.dtype) for name, parameter in loaded.model.named_parameters()}
    assert dtypes == {(False, torch.bfloat16), (True, torch.float32)}
    assert notices == []
    kept = load_model(
        args(base, torch_dtype="bfloat16", master_dtype="float32"), LORA, for_training=True
    ).model
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}


def test_no_adapter_and_evaluation_do_not_change_the_model(base: Path):
    assert not hasattr(load_model(args(base), None, for_training=True).model, "peft_config")
    assert not hasattr(load_model(args(base), {"type": "none"}, for_training=True).model, "peft_config")
    assert not hasattr(load_model(args(base), LORA, for_training=False).model, "peft_config")


# Gradients


def test_gradients_through_label_outputs_equal_those_of_full_logits(base: Path, side: Any):
    model = load_model(args(base), LORA, for_training=True).model
    train(model, side, steps=1)
    index = label_index(side["input_ids"], side["label_mask"])

    def gradients(logits_BNV: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (-token_logp(logits_BNV, index.label_BN)[index.mask_BN].sum()).backward()
        return {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    full_BTV = model(input_ids=side["input_ids"], attention_mask=side["attention_mask"]).logits
    place_BNV = index.predictor_BN.unsqueeze(-1).expand(-1, -1, full_BTV.shape[-1])
    expected = gradients(full_BTV.gather(1, place_BNV))
    found = gradients(label_outputs(model, side).logits_BNV)
    assert set(found) == set(expected) == {name for name in dict(model.named_parameters()) if "lora_" in name}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)
        assert gradient.any(), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_really_trains_the_adapter(base: Path, side: Any, reentrant: bool):
    def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = load_model(args(base), {**LORA, "dropout": 0.3}, for_training=True).model.train()
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(
                layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(0)
            )
        if checkpointed:
            model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": reentrant}
            )
            assert model.get_base_model().is_activation_checkpointing
        torch.manual_seed(3)
        out = label_outputs(model, side)
        (-token_logp(out.logits_BNV, out.label_BN)[out.mask_BN].sum()).backward()
        return {
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    expected, found = gradients(False), gradients(True)
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.any(), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


# Continued


def test_a_trained_adapter_is_continued_with_its_logits_from_either_path(base: Path, trained: Any, side: Any):
    folder, expected = trained
    by_path = load_model(args(base), {**LORA, "path": str(folder)}, for_training=True)
    notices: list[str] = []
    by_model = load_model(args(folder), None, for_training=True, notices=notices)
    by_loader = load_model(args(folder), for_training=True)
    use_lora = attach_adapter(load_model(args(folder), for_training=True).model, LORA, for_training=True)
    assert any("continues the adapter" in notice for notice in notices)
    assert not torch.allclose(
        expected, logits(load_model(args(base), for_training=False).model, side), atol=1e-2
    )
    for model in (by_path.model, by_model.model, by_loader.model, use_lora):
        assert (logits(model, side) - expected).abs().max() <= 1e-6
        assert all(
            ("lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters()
        )
        assert len(model.peft_config) == 1
    train(by_model.model, side)
    assert not torch.allclose(expected, logits(by_model.model, side), atol=1e-3)


def test_a_saved_adapter_is_evaluated_over_its_base(trained: Any, side: Any):
    folder, expected = trained
    loaded = load_model(args(folder), for_training=False)
    assert (logits(loaded.model, side) - expected).abs().max() <= 1e-6
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (
        loaded.model.generate(input_ids=side["input_ids"][:1], max_new_tokens=2, do_sample=False).shape[1]
        == 9
    )


def test_dropout_may_change_when_an_adapter_is_continued(trained: Any, side: Any):
    folder, expected = trained
    model = load_model(args(folder), {"type": "lora", "dropout": 0.5}, for_training=True).model
    assert (logits(model, side) - expected).abs().max() <= 1e-6
    torch.manual_seed(0)
    assert not torch.allclose(logits(model.train(), side), expected, atol=1e-3)


def test_only_the_adapter_is_saved_with_the_record_of_its_base(base: Path, trained: Any):
    folder, _ = trained
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(base), 4, 8)
    assert config["target_modules"] == sorted(config["target_modules"])
    record = json.loads((folder / "base_model.json").read_text())
    assert record["model_args"] == {"pretrained_model_name_or_path": str(base)}


def test_the_embedded_model_is_recorded_by_its_name_and_found_again(side: Any, tmp_path: Path, mini: None):
    model = load_model(args("expunge/mini"), LORA, for_training=True).model
    train(model, side)
    save_model(model, tmp_path / "on-mini")
    assert json.loads((tmp_path / "on-mini" / "base_model.json").read_text())["model_args"] == args(
        "expunge/mini"
    )
    assert torch.equal(
        logits(load_model(args(tmp_path / "on-mini"), for_training=False).model, side), logits(model, side)
    )


# Merged


def test_merged_weights_give_the_adapters_logits_and_the_adapter_is_kept(
    trained: Any, side: Any, tmp_path: Path
):
    folder, expected = trained
    model = load_model(args(folder), {"merge": True}, for_training=True).model
    save_model(model, tmp_path / "merged", merge=True)
    merged = load_model(args(tmp_path / "merged"), for_training=False).model
    assert not hasattr(merged, "peft_config")
    assert (logits(merged, side) - expected).abs().max() <= 1e-5
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    again = load_model(args(tmp_path / "merged" / "adapter"), for_training=False).model
    assert (logits(again, side) - expected).abs().max() <= 1e-6


def test_an_adapter_on_tied_embeddings_cannot_be_merged(base: Path, tmp_path: Path):
    model = load_model(
        args(base), {**LORA, "target_modules": ["q_proj", "embed_tokens"]}, for_training=True
    ).model
    with pytest.raises(UserError, match="shares its weights"):
        save_model(model, tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(UserError, match="shares its weights"):
        load_model(args(base), {**LORA, "target_modules": ["embed_tokens"], "merge": True}, for_training=True)


def test_merging_into_half_precision_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("expunge.models.precision.supports_bf16", lambda _: True)
    for more, expected in (({}, 1), ({"master_dtype": "float32"}, 0)):
        notices: list[str] = []
        load_model(
            args(base, torch_dtype="bfloat16", **more),
            {**LORA, "merge": True},
            for_training=True,
            notices=notices,
        )
        assert sum("merged weights are rounded to bfloat16" in notice for notice in notices) == expected


def test_an_adapter_without_a_tokenizer_uses_the_tokenizer_of_its_base(
    base: Path, trained: Any, tiny_tokenizer: Any
):
    folder, _ = trained
    tiny_tokenizer.save_pretrained(base)
    assert load_tokenizer(args(folder)).get_vocab() == tiny_tokenizer.get_vocab()
    tiny_tokenizer.save_pretrained(folder)
    shutil.rmtree(base)
    assert load_tokenizer(args(folder)).get_vocab() == tiny_tokenizer.get_vocab()


# Fingerprints


def test_the_fingerprint_of_a_folder_covers_adapter_and_base(
    base: Path, trained: Any, tiny_model: Callable[..., Any]
):
    folder, _ = trained
    first = model_fingerprint(folder)
    assert first == model_fingerprint(folder) != model_fingerprint(base)
    tiny_model(seed=2).save_pretrained(base)
    other_base = model_fingerprint(folder)
    assert other_base != first
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, folder / "adapter_model.safetensors")
    assert model_fingerprint(folder) not in (first, other_base)


def test_the_fingerprint_of_a_live_model_covers_the_adapter_scale(base: Path):
    one, other = (
        load_model(args(base), {**LORA, "alpha": alpha}, for_training=True).model for alpha in (8, 9)
    )
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(one) == model_fingerprint(load_model(args(base), LORA, for_training=True).model)


def test_the_fingerprint_of_a_base_ignores_the_dtype_and_detects_a_small_change(
    tiny_model: Callable[..., Any],
):
    model = tiny_model(seed=1)
    first = sampled_fingerprint(model)
    assert sampled_fingerprint(tiny_model(seed=1).to(torch.bfloat16)) == first
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.02)
    assert sampled_fingerprint(model) != first
    assert sampled_fingerprint(tiny_model(seed=1).half()) is None


# Configs


@pytest.mark.parametrize("choice", ["none", "lora", "qlora"])
def test_the_configs_name_every_key_and_no_other_defaults(choice: str):
    text = (config_roots([])[0] / "model" / "adapter" / f"{choice}.yaml").read_text()
    section = yaml.safe_load(text)
    assert text.startswith("# @package model.adapter\n")
    assert set(section) == {field.name for field in fields(AdapterArgs)}
    assert AdapterArgs.parse(section) == AdapterArgs(type=choice)
    assert load_module.AdapterArgs is AdapterArgs
