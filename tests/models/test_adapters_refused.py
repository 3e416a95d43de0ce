"""LoRA and QLoRA: what is refused, and with which message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_runs import LORA, args, logits, train
from safetensors.torch import load_file, save_file

from expunge.core.errors import MissingExtraError, UserError
from expunge.models.adapter_args import AdapterArgs
from expunge.models.adapters import attach_adapter, save_model
from expunge.models.load import load_model, quantization_of


@pytest.mark.parametrize(
    ("asked", "has"),
    [
        ({"r": 8}, "r is 8, .* has 4"),
        ({"alpha": 16}, "alpha is 16, .* has 8"),
        ({"bias": "all"}, "bias is all"),
        ({"target_modules": ["q_proj"]}, "down_proj, gate_proj"),
    ],
)
def test_continuing_with_other_settings_is_refused(base: Path, trained: Any, asked: dict[str, Any], has: str):
    folder, _ = trained
    with pytest.raises(UserError, match=has):
        load_model(args(folder), {"type": "lora", **asked}, for_training=True)
    with pytest.raises(UserError, match=has):
        load_model(args(base), {"path": str(folder), **asked}, for_training=True)
    with pytest.raises(UserError, match=has):
        attach_adapter(
            load_model(args(folder), for_training=True).model, {"type": "lora", **asked}, for_training=True
        )


def test_continuing_with_its_own_settings_passes(trained: Any):
    folder, _ = trained
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    load_model(args(folder), {**LORA, "target_modules": names, "bias": "none"}, for_training=True)


def test_both_faults_are_reported_together(trained: Any):
    with pytest.raises(UserError) as caught:
        load_model(args(trained[0]), {"type": "lora", "r": 8, "alpha": 16}, for_training=True)
    assert len(caught.value.faults) == 2


def test_an_adapter_of_another_base_is_refused(
    trained: Any, tiny_model: Callable[..., Any], tmp_path: Path, side: Any
):
    folder, expected = trained
    tiny_model(seed=2).save_pretrained(tmp_path / "other")
    tiny_model(seed=1).save_pretrained(tmp_path / "copy")
    tiny_model(seed=2, hidden_size=48).save_pretrained(tmp_path / "wider")
    tiny_model(seed=2, num_hidden_layers=1).save_pretrained(tmp_path / "flatter")
    section = {"path": str(folder)}
    with pytest.raises(UserError, match="another base"):
        load_model(args(tmp_path / "other"), section, for_training=True)
    copied = load_model(args(tmp_path / "copy"), section, for_training=True).model
    assert (logits(copied, side) - expected).abs().max() <= 1e-6
    notices: list[str] = []
    load_model(
        args(tmp_path / "other"), {**section, "allow_other_base": True}, for_training=True, notices=notices
    )
    assert "another base" in notices[0]
    for name in ("wider", "flatter"):
        with pytest.raises(UserError, match="does not fit the base"):
            load_model(args(tmp_path / name), {**section, "allow_other_base": True}, for_training=True)


def test_without_our_record_the_name_of_the_base_decides(
    base: Path, trained: Any, tiny_model: Callable[..., Any], tmp_path: Path
):
    folder, _ = trained
    (folder / "base_model.json").unlink()
    load_model(args(base), {"path": str(folder)}, for_training=True)
    load_model(args(folder), None, for_training=False)
    tiny_model(seed=1).save_pretrained(tmp_path / "copy")
    with pytest.raises(UserError, match=r"the adapter names .*base"):
        load_model(args(tmp_path / "copy"), {"path": str(folder)}, for_training=True)


def test_damaged_and_incomplete_adapters_are_refused(trained: Any):
    folder, _ = trained
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    lacking = dict(list(weights.items())[1:])
    save_file(lacking, path)
    with pytest.raises(UserError, match="lacks 1 weights"):
        load_model(args(folder), for_training=False)
    save_file(
        {**weights, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)},
        path,
    )
    with pytest.raises(UserError, match=r"1 weights that do not belong there"):
        load_model(args(folder), for_training=False)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_model(args(folder), for_training=False)
    path.unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_model(args(folder), for_training=False)


def test_a_missing_base_and_two_adapters_are_reported(base: Path, trained: Any):
    folder, _ = trained
    with pytest.raises(UserError, match="only one is possible"):
        load_model(args(folder), {"path": str(folder)}, for_training=True)
    with pytest.raises(UserError, match="one of the two"):
        attach_adapter(
            load_model(args(folder), for_training=True).model, {"path": str(folder)}, for_training=True
        )
    base.rename(base.with_name("moved"))
    with pytest.raises(UserError, match=r"base of the adapter .* cannot be loaded") as caught:
        load_model(args(folder), for_training=False)
    assert "model.adapter.path" in caught.value.faults[0].hint


def test_a_folder_with_adapter_and_whole_model_is_refused(base: Path, trained: Any):
    (base / "adapter_config.json").write_text((trained[0] / "adapter_config.json").read_text())
    with pytest.raises(UserError, match="both an adapter and a whole model"):
        load_model(args(base), for_training=False)


def test_adapters_of_other_kinds_are_refused(base: Path, trained: Any):
    folder, _ = trained
    config = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "target_modules": ["k_proj"],
        "feedforward_modules": [],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="only LoRA"):
        load_model(args(base), {"path": str(folder)}, for_training=True)


def test_unknown_layers_are_reported_with_the_near_match(base: Path):
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        load_model(args(base), {**LORA, "target_modules": ["q_prj", "v_proj"]}, for_training=True)
    with pytest.raises(UserError, match="matches the whole name of no layer"):
        load_model(args(base), {**LORA, "target_modules": "q_proj"}, for_training=True)
    with pytest.raises(UserError, match="not a regular expression"):
        load_model(args(base), {**LORA, "target_modules": "(q_proj"}, for_training=True)


def test_bad_values_are_reported_together(tmp_path: Path):
    bad = {
        "type": "lara",
        "rank": 3,
        "r": 0,
        "alpha": -1,
        "dropout": 1.0,
        "bias": "some",
        "target_modules": [],
        "path": str(tmp_path),
    }
    with pytest.raises(UserError) as caught:
        AdapterArgs.parse({**bad, "merge": "yes"})
    assert len(caught.value.faults) == 9
    assert AdapterArgs.parse({"r": None, "target_modules": "all-linear"}) == AdapterArgs()


def test_missing_packages_are_named(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"expunge\[lora\]"):
        load_model(args(base), LORA, for_training=True)
    with pytest.raises(MissingExtraError, match=r"CUDA[\s\S]*expunge\[quantized\]"):
        quantization_of(AdapterArgs(type="qlora"), [])


def test_qlora_needs_a_base_in_4_bits(base: Path):
    with pytest.raises(UserError, match="not loaded in 4 bits"):
        attach_adapter(load_model(args(base), for_training=True).model, {"type": "qlora"}, for_training=True)


def test_qlora_over_a_base_in_4_bits(tiny_model: Callable[..., Any], side: Any, tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    # Weights are quantised in blocks of 64, so a row must have at least 64 entries.
    tiny_model(seed=1, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    section = {**LORA, "type": "qlora"}
    model = load_model(args(tmp_path / "base"), section, for_training=True).model
    assert model.get_base_model().is_loaded_in_4bit
    before = logits(model, side)
    train(model, side)
    # Compute this before saving: after the state was read, bitsandbytes 0.50 packs the weights again on a CPU
    # and rounds their scales.
    expected = logits(model, side)
    assert not torch.allclose(before, expected, atol=1e-2)
    save_model(model, tmp_path / "qlora")
    again = load_model(args(tmp_path / "qlora"), section, for_training=False).model
    assert (logits(again, side) - expected).abs().max() <= 1e-6
    with pytest.raises(UserError, match="cannot be merged"):
        save_model(model, tmp_path / "merged", merge=True)
