"""A model with random weights or without weights: what `plan` uses before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from expunge.models.adapter_args import AdapterArgs
from expunge.models.adapters import new_config

UNMASKED = "expunge_unmasked"
"""Attention with the memory of flash attention (one kernel, no mask), which runs on any device."""


class KernelDropout(nn.Module):
    """Dropout as a GPU does it: its mask takes one byte per number, that of a CPU the width of the number.

    Args:
        p: share of the numbers that is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training mode."""
        return torch.native_dropout(x, self.p, self.training)[0]


def without_weights(
    config: Any, adapter: AdapterArgs | None, *, dtype: torch.dtype, masked: bool, for_gpu: bool
) -> Any:
    """A model with random weights; inside `torch.device("meta")`, without weights.

    Args:
        config: transformers' configuration of the model.
        adapter: a new adapter for the model; None = none.
        dtype: dtype of the weights; those of an adapter are float32.
        masked: whether attention uses a mask.
        for_gpu: whether the memory must be that of a GPU, if it differs from that of a CPU.

    Returns:
        The model in training mode.
    """
    AttentionInterface.register(UNMASKED, sdpa_attention_forward)
    AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)
    attention: Mapping[str, Any] = {"attn_implementation": "sdpa" if masked else UNMASKED}
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **attention)  # type: ignore[no-untyped-call]
    # transformers 5.0 leaves weights on the meta device apart; later versions tie them.
    model.tie_weights()
    if adapter is None:
        return model.train()
    from peft import get_peft_model

    adapted: Any = get_peft_model(model, new_config(adapter))
    for module in adapted.modules():
        dropouts: Any = getattr(module, "lora_dropout", None)
        for name, dropout in dropouts.items() if dropouts is not None and for_gpu else ():
            if isinstance(dropout, nn.Dropout):
                dropouts[name] = KernelDropout(dropout.p)
    return adapted.train()


def empty_on(model: nn.Module, where: torch.device) -> None:
    """Move a model from the meta device, with empty (or fake) weights; shared weights stay shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in made:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device=where)
                made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
            setattr(module, name, made[id(weight)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=where))


def sharding_units(model: Any) -> list[Any]:
    """The units in which sharded weights are gathered, as in accelerate.

    Each decoder layer is a unit, and each embedding that is not tied. The rest belongs to the root unit.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    layers: Any = max(lists, key=lambda found: sum(weight.numel() for weight in found.parameters()))
    first, last = base.get_input_embeddings(), base.get_output_embeddings()
    return [*layers, *([first, last] if last.weight is not first.weight else [])]
