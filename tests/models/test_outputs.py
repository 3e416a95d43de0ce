from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from expunge.core.errors import UserError
from expunge.lm.labels import Side, label_index
from expunge.lm.logprobs import masked_sum, token_logp
from expunge.models.outputs import label_outputs, side_outputs, unwrapped

LENGTHS = ((9, 4), (14, 6), (5, 5))
"""For each row: its number of tokens, and the start of its labels."""


def make_side(pad: str = "right", vocab: int = 100) -> Side:
    """Three rows of different lengths; the tokens do not depend on the side of the padding."""
    width = max(length for length, _ in LENGTHS)
    ids_BT, attention_BT = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    label_BT = torch.zeros(3, width, dtype=torch.bool)
    for row, (length, first) in enumerate(LENGTHS):
        start = 0 if pad == "right" else width - length
        tokens = torch.randint(1, vocab, (length,), generator=torch.Generator().manual_seed(row))
        ids_BT[row, start : start + length] = tokens
        attention_BT[row, start : start + length] = 1
        label_BT[row, start + first - 1 : start + length] = True
    return {
        "input_ids": ids_BT,
        "attention_mask": attention_BT,
        "label_mask": label_BT,
        "row": torch.arange(3),
    }


def full_path(model: nn.Module, side: Side) -> torch.Tensor:
    """Logits at all positions, then gathered: the expected value of `label_outputs`."""
    logits_BTV = model(
        input_ids=side["input_ids"], attention_mask=side["attention_mask"], use_cache=False
    ).logits
    index = label_index(side["input_ids"], side["label_mask"])
    return logits_BTV.gather(1, index.predictor_BN.unsqueeze(-1).expand(-1, -1, logits_BTV.shape[-1]))


def build(family: str) -> Any:
    """A tiny random model of a family."""
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        GPT2Config,
        LlamaConfig,
        PhiConfig,
        Qwen3Config,
    )

    common: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    grouped = {**common, "num_key_value_heads": 2, "head_dim": 8}
    configs = {
        "llama": lambda: LlamaConfig(**grouped),
        "qwen3": lambda: Qwen3Config(**grouped),
        "gemma2": lambda: Gemma2Config(**grouped, sliding_window=8, final_logit_softcapping=5.0),
        "phi": lambda: PhiConfig(**common),
        "gpt2": lambda: GPT2Config(
            vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(configs[family]()).eval()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi"])
def test_equals_full_logits_and_their_gradient(family: str):
    model, side = build(family), make_side()
    out = label_outputs(model, side)
    expected_BNV = full_path(model, side)
    torch.testing.assert_close(out.logits_BNV, expected_BNV, rtol=1e-5, atol=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss(logits_BNV: torch.Tensor) -> torch.Tensor:
        return masked_sum(token_logp(logits_BNV, out.label_BN), out.mask_BN).sum()

    ours = torch.autograd.grad(loss(out.logits_BNV), parameters)
    theirs = torch.autograd.grad(loss(expected_BNV), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi", "gpt2"])
def test_left_padding_equals_right_padding(family: str):
    model = build(family)
    with torch.no_grad():
        right, left = label_outputs(model, make_side("right")), label_outputs(model, make_side("left"))
    assert torch.equal(right.label_BN, left.label_BN)
    assert torch.equal(right.mask_BN, left.mask_BN)
    logp = [token_logp(out.logits_BNV, out.label_BN)[out.mask_BN] for out in (right, left)]
    torch.testing.assert_close(logp[0], logp[1], rtol=1e-5, atol=1e-5)


def test_tokens_under_the_padding_do_not_matter():
    model, side = build("llama"), make_side()
    other = copy.deepcopy(side)
    other["input_ids"][side["attention_mask"] == 0] = 7
    with torch.no_grad():
        torch.testing.assert_close(
            label_outputs(model, side).logits_BNV, label_outputs(model, other).logits_BNV
        )


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_hooks_are_removed_after_success_and_after_failure(monkeypatch: pytest.MonkeyPatch):
    model, side = build("llama"), make_side()
    side_outputs(model, side, hidden=r"model\.layers\.0")
    assert hooks(model) == 0

    def fails(**_: Any) -> Any:
        raise RuntimeError("in the forward pass")

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", fails)
        with pytest.raises(RuntimeError, match="in the forward pass"):
            side_outputs(model, side, hidden=r"model\.layers\.0")
    with pytest.raises(UserError):
        side_outputs(model, side, hidden="no such module")
    assert hooks(model) == 0
    with torch.no_grad():
        assert model(**{key: side[key] for key in ("input_ids", "attention_mask")}).logits.shape[1] == 14  # type: ignore[literal-required]


def test_a_reference_inside_a_policy_pass_keeps_its_own_positions():
    """The pass of one model runs inside the pass of another model on other rows; both results are correct."""
    policy, reference = build("llama"), build("llama")
    side, other = make_side(), make_side()
    other["label_mask"] = other["attention_mask"].bool() & (torch.arange(14) > 0)
    inside: list[torch.Tensor] = []

    def call(**inputs: Any) -> Any:
        with torch.no_grad():
            inside.append(label_outputs(reference, other).logits_BNV)
        return policy(**inputs)

    out = label_outputs(policy, side, call=call)
    torch.testing.assert_close(out.logits_BNV, full_path(policy, side), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inside[0], full_path(reference, other), rtol=1e-5, atol=1e-5)


def test_hidden_is_the_output_of_the_module():
    model, side = build("llama"), make_side()
    out = side_outputs(model, side, hidden=r"model\.layers\.0")
    states = model(
        **{"input_ids": side["input_ids"], "attention_mask": side["attention_mask"]},
        output_hidden_states=True,
    ).hidden_states
    assert out.hidden_BTD is not None
    torch.testing.assert_close(out.hidden_BTD, states[1])
    assert side_outputs(model, side).hidden_BTD is None


def test_hidden_pattern_has_to_name_one_module():
    model, side = build("llama"), make_side()
    with pytest.raises(UserError, match="matches no module") as error:
        side_outputs(model, side, hidden=r"model\.layer\.1")
    assert "model.layers.1" in str(error.value)
    with pytest.raises(UserError, match="matches 2 modules"):
        side_outputs(model, side, hidden=r"model\.layers\.\d")
    with pytest.raises(UserError, match="not a regular expression"):
        side_outputs(model, side, hidden="(")


def test_a_model_without_a_vocabulary_head_is_refused():
    with pytest.raises(UserError, match="no output embeddings"):
        label_outputs(build("llama").model, make_side())


@pytest.fixture
def eager(tiny_model: Callable[..., Any]) -> Any:
    # Forward-mode differentiation has no rule for the fused attention kernels.
    return tiny_model(attn_implementation="eager")


def functional(model: nn.Module, index: Any = None) -> Callable[..., torch.Tensor]:
    def loss(parameters: dict[str, torch.Tensor], side: Side, index: Any = index) -> torch.Tensor:
        def call(**inputs: Any) -> Any:
            return functional_call(model, parameters, (), inputs)

        out = label_outputs(model, side, index=index, call=call)
        return masked_sum(token_logp(out.logits_BNV, out.label_BN), out.mask_BN).sum()

    return loss


def test_func_grad_and_jvp(eager: Any):
    side = make_side()
    parameters = {name: p.detach() for name, p in eager.named_parameters()}
    loss = functional(eager)
    gradient = grad(loss)(parameters, side)
    eager.zero_grad()
    out = label_outputs(eager, side)
    masked_sum(token_logp(out.logits_BNV, out.label_BN), out.mask_BN).sum().backward()
    for name, parameter in eager.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    tangent = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    _, along = jvp(lambda p: loss(p, side), (parameters,), (tangent,))
    expected = sum((gradient[name] * tangent[name]).sum() for name in parameters)
    torch.testing.assert_close(along, expected, rtol=1e-3, atol=1e-3)


def test_func_vmap_gives_per_sample_gradients(eager: Any):
    side = make_side()
    parameters = {name: p.detach() for name, p in eager.named_parameters()}
    whole = label_index(side["input_ids"], side["label_mask"])

    def one(
        ids_T: torch.Tensor, attention_T: torch.Tensor, label_T: torch.Tensor, *index_N: torch.Tensor
    ) -> Any:
        row: Side = {
            "input_ids": ids_T[None],
            "attention_mask": attention_T[None],
            "label_mask": label_T[None],
        }
        index = type(whole)(*(part[None] for part in index_N))
        return grad(functional(eager, index))(parameters, row)

    batched = vmap(one)(side["input_ids"], side["attention_mask"], side["label_mask"], *whole)
    for row in range(3):
        alone: Side = {key: side[key][row : row + 1] for key in ("input_ids", "attention_mask", "label_mask")}  # type: ignore[literal-required, assignment]
        expected = grad(functional(eager))(parameters, alone)
        for name in parameters:
            torch.testing.assert_close(batched[name][row], expected[name], rtol=1e-4, atol=1e-5)


def test_peft_model_equals_its_full_logits_and_trains_only_its_adapter():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model, side = peft.get_peft_model(build("llama"), config).eval(), make_side()
    out = label_outputs(model, side)
    assert side_outputs(model, side, hidden=r"model\.layers\.0").hidden_BTD is not None
    torch.testing.assert_close(out.logits_BNV, full_path(model, side), rtol=1e-5, atol=1e-5)
    token_logp(out.logits_BNV, out.label_BN).sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched
    assert all("lora_" in name for name in touched)


def sharded(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


class Wrapper(nn.Module):
    """Looks like DDP: the model is a child named `module`, and the wrapper has its own forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **inputs: Any) -> Any:
        self.calls += 1
        return self.module(**inputs)


def test_the_wrapper_is_called():
    model, side = build("llama"), make_side()
    wrapper = Wrapper(model)
    assert unwrapped(wrapper) is model
    assert unwrapped(model) is model
    torch.testing.assert_close(label_outputs(wrapper, side).logits_BNV, label_outputs(model, side).logits_BNV)
    assert wrapper.calls == 1
    compiled = torch.compile(model, backend="eager")
    assert unwrapped(compiled) is model


def test_ddp_and_fsdp_gradients_equal_the_plain_ones(tmp_path: Any):
    side = make_side()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        gradients = []
        for wrap in (lambda m: m, nn.parallel.DistributedDataParallel, sharded):
            model = build("llama")
            out = label_outputs(wrap(model), side)
            masked_sum(token_logp(out.logits_BNV, out.label_BN), out.mask_BN).sum().backward()
            gradients.append([getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    for plain, ddp, fsdp in zip(*gradients, strict=True):
        torch.testing.assert_close(ddp, plain)
        torch.testing.assert_close(fsdp, plain)


def test_gradient_checkpointing_gives_the_same_gradient():
    side, gradients = make_side(), []
    for checkpointing in (False, True):
        model = build("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        out = label_outputs(model, side)
        token_logp(out.logits_BNV, out.label_BN)[out.mask_BN].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_two_models_in_two_threads():
    side, models = make_side(), [build("llama"), build("qwen3")]
    expected = [full_path(model, side).detach() for model in models]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[number] = label_outputs(models[number], side).logits_BNV

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        torch.testing.assert_close(found[number], expected[number], rtol=1e-5, atol=1e-5)
