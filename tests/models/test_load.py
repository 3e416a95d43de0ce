from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.errors import UserError
from expunge.models import attention, precision
from expunge.models.attention import choose_attention
from expunge.models.fingerprint import model_fingerprint
from expunge.models.load import load_model
from expunge.models.precision import compute_dtype

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def folder(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    tiny_model(seed=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def args(folder: Path, **more: Any) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(folder), **more}


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "supports_bf16", lambda _: True)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "supports_bf16", lambda _: False)


def test_loads_the_weights_that_were_saved(folder: Path, tiny_model: Callable[..., Any]):
    model, dtype = load_model(args(folder), for_training=True)
    assert dtype == torch.float32
    assert not model.training
    for (name, one), other in zip(
        model.state_dict().items(), tiny_model(seed=1).state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.usefixtures("with_bf16")
def test_torch_dtype_is_the_compute_dtype_and_masters_are_float32(folder: Path):
    trained = load_model(args(folder, torch_dtype="bfloat16"), for_training=True)
    assert (trained.model.dtype, trained.compute_dtype) == (torch.float32, torch.bfloat16)
    evaluated = load_model(args(folder, torch_dtype="bfloat16"), for_training=False)
    assert (evaluated.model.dtype, evaluated.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    plain = load_model(args(folder), for_training=False)
    assert plain.model.dtype == torch.float32
    notices: list[str] = []
    pure = load_model(
        args(folder, torch_dtype="bfloat16", master_dtype="bfloat16"), for_training=True, notices=notices
    )
    assert pure.model.dtype == torch.bfloat16
    assert any("master_dtype" in notice for notice in notices)


@pytest.mark.usefixtures("without_bf16")
def test_bf16_falls_back_with_a_notice(folder: Path):
    notices: list[str] = []
    loaded = load_model(args(folder, torch_dtype="bfloat16"), for_training=False, notices=notices)
    assert (loaded.model.dtype, loaded.compute_dtype) == (torch.float32, torch.float32)
    assert "no bfloat16" in notices[0]


def test_dtype_names(with_bf16: None):
    assert compute_dtype("auto", torch.bfloat16, CPU, []) == torch.bfloat16
    assert compute_dtype("torch.float32", None, CPU, []) == torch.float32
    assert compute_dtype("auto", None, CPU, []) == torch.float32
    notices: list[str] = []
    assert compute_dtype("float16", None, CPU, notices) == torch.float32
    assert "float16" in notices[0]
    assert compute_dtype("float16", None, CUDA, []) == torch.float16
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        compute_dtype("bfloaat16", None, CPU, [])


def test_flash_attention_falls_back_to_sdpa_with_a_notice(folder: Path):
    notices: list[str] = []
    loaded = load_model(
        args(folder, attn_implementation="flash_attention_2"), for_training=False, notices=notices
    )
    assert loaded.model.config._attn_implementation == "sdpa"
    assert notices == ["attn_implementation=flash_attention_2: it needs a CUDA device, using sdpa"]
    assert (
        load_model(
            args(folder, attn_implementation="eager"), for_training=False
        ).model.config._attn_implementation
        == "eager"
    )


def test_attention_falls_back_one_step_at_a_time(monkeypatch: pytest.MonkeyPatch):
    config, notices = LlamaConfig(), []
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    assert choose_attention("flash_attention_2", config, CUDA, torch.bfloat16, notices) == "sdpa"
    assert "flash-attn is not installed" in notices[0]
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    assert choose_attention("flash_attention_2", config, CUDA, torch.bfloat16, notices) == "flash_attention_2"
    assert choose_attention("flash_attention_2", config, CUDA, torch.float32, notices) == "sdpa"
    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    assert choose_attention("flash_attention_2", config, CPU, torch.bfloat16, notices) == "eager"
    assert "using eager" in notices[-1]
    assert choose_attention(None, config, CPU, torch.float32, notices) is None
    with pytest.raises(UserError, match="did you mean 'flash_attention_2'"):
        choose_attention("flash_attn_2", config, CPU, torch.float32, notices)


def test_a_cuda_device_map_without_cuda_is_reported(folder: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    notices: list[str] = []
    assert (
        load_model(args(folder, device_map="cuda"), for_training=False, notices=notices).model.device == CPU
    )
    assert "device_map=cuda" in notices[0]


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, folder: Path):
    from expunge.data import mini

    monkeypatch.setattr(mini, "model_folder", lambda: folder)
    loaded = load_model({"pretrained_model_name_or_path": "expunge/mini"}, for_training=False)
    assert isinstance(loaded.model, LlamaForCausalLM)
    assert model_fingerprint("expunge/mini") == model_fingerprint(folder)


def test_unknown_keys_are_refused_together(folder: Path):
    with pytest.raises(UserError) as error:
        load_model(args(folder, atn_implementation="eager", revison="main"), for_training=False)
    assert len(error.value.faults) == 2
    assert "did you mean 'attn_implementation'" in str(error.value)


def test_a_missing_model_is_reported_with_the_places_searched(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="is not given"):
        load_model({}, for_training=False)
    with pytest.raises(UserError, match="there is no model at") as error:
        load_model(args(tmp_path / "nowhere"), for_training=False)
    assert str(tmp_path / "nowhere") in error.value.faults[0].hint
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"no config\.json") as error:
        load_model(args(tmp_path / "notes"), for_training=False)
    assert "readme.txt" in str(error.value)
    (tmp_path / "notes" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say which base"):
        load_model(args(tmp_path / "notes"), for_training=False)
    with pytest.raises(UserError, match="is a file"):
        load_model(args(folder / "config.json"), for_training=False)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as error:
        load_model({"pretrained_model_name_or_path": "no-such-org/no-such-model"}, for_training=False)
    assert "no-such-model" in error.value.faults[0].hint


def test_damaged_models_are_refused(folder: Path):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot load"):
        load_model(args(folder), for_training=False)
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="cannot load"):
        load_model(args(folder), for_training=False)
    weights.unlink()
    with pytest.raises(UserError, match="cannot load"):
        load_model(args(folder), for_training=False)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {key: value for key, value in tensors.items() if key != name}, weights, metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match=f"incomplete: 1 tensors .* {name}"):
        load_model(args(folder), for_training=False)
    save_file({**tensors, name: tensors[name][:5].clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError):
        load_model(args(folder), for_training=False)
    (folder / "config.json").write_text("{not json")
    with pytest.raises(UserError, match="cannot load"):
        load_model(args(folder), for_training=False)
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    with pytest.raises(UserError, match="cannot load"):
        load_model(args(folder), for_training=False)


def test_unused_tensors_are_reported(folder: Path):
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), "stray": torch.zeros(2)}, weights, metadata={"format": "pt"})
    notices: list[str] = []
    load_model(args(folder), for_training=False, notices=notices)
    assert any("1 tensors" in notice for notice in notices)


def test_different_weights_have_different_fingerprints(
    folder: Path, tiny_model: Callable[..., Any], tmp_path: Path
):
    tiny_model(seed=2).save_pretrained(tmp_path / "other")
    tiny_model(seed=1).save_pretrained(tmp_path / "same")
    assert (
        model_fingerprint(folder)
        == model_fingerprint(str(tmp_path / "same"))
        != model_fingerprint(tmp_path / "other")
    )
    before = model_fingerprint(folder)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_text("x")
    assert model_fingerprint(folder) == before
    assert model_fingerprint("org/name") != model_fingerprint("org/name", "v2")
    model = tiny_model(seed=1)
    assert (
        model_fingerprint(model)
        == model_fingerprint(tiny_model(seed=1))
        != model_fingerprint(tiny_model(seed=2))
    )
    assert model_fingerprint(model.bfloat16()) != model_fingerprint(tiny_model(seed=1))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert model_fingerprint(model) != model_fingerprint(tiny_model(seed=1).bfloat16())


@pytest.mark.shared
def test_real_checkpoints_load(shared: Path):
    loaded = load_model(args(shared / "models" / "tofu-tiny-full"), for_training=False)
    assert loaded.model.config.vocab_size == 4096


def write_gguf(path: Path, model: Any) -> None:
    """Write tensors with the names of llama.cpp, which interleaves the two halves of each head in q and k."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = model.state_dict()
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ):
        writer.add_tensor(f"{theirs}.weight", state[f"{ours}.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            if heads:
                weight = weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(tiny_model: Callable[..., Any], tmp_path: Path):
    model = tiny_model(seed=3, tie_word_embeddings=False)
    write_gguf(tmp_path / "tiny.gguf", model)
    for place in (args(tmp_path / "tiny.gguf"), args(tmp_path, gguf_file="tiny.gguf")):
        loaded = load_model(place, for_training=True).model
        ids_BT = torch.tensor([[3, 7, 11, 20]])
        torch.testing.assert_close(loaded(ids_BT).logits, model(ids_BT).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"no GGUF file other\.gguf"):
        load_model(args(tmp_path, gguf_file="other.gguf"), for_training=True)
