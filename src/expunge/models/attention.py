"""Which attention kernel a model runs with on this machine: flash, else sdpa, else eager."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from expunge.config.model_keys import ATTENTIONS
from expunge.core.errors import UserError, unknown


def choose_attention(
    asked: str | None, config: Any, where: torch.device, dtype: torch.dtype, notices: list[str]
) -> str | None:
    """The implementation to load a model with.

    Args:
        asked: `attn_implementation` as given; None = transformers' own choice.
        config: the model's configuration.
        where: the device to compute on.
        dtype: the dtype to compute in.
        notices: told when another one than asked for is taken.

    Returns:
        What to pass on as `attn_implementation`.

    Raises:
        UserError: no such implementation.
    """
    if asked is None:
        return None
    if asked not in ATTENTIONS and "/" not in asked:
        raise UserError.of([unknown("attn_implementation", asked, ATTENTIONS)])
    # A class from remote code is in no table: its own check at loading then has the last word.
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    lacks = _flash_lacks(asked, model_class, where, dtype) if asked.startswith("flash_attention") else ""
    chosen = asked
    if lacks:
        chosen = "sdpa"
        notices.append(f"attn_implementation={asked}: {lacks}, using sdpa")
    if chosen == "sdpa" and model_class is not None and not getattr(model_class, "_supports_sdpa", True):
        chosen = "eager"
        notices.append(f"attn_implementation={asked}: {model_class.__name__} has no sdpa, using eager")
    return chosen


def _flash_lacks(asked: str, model_class: Any, where: torch.device, dtype: torch.dtype) -> str:
    """What is missing for flash attention; empty when nothing is."""
    if where.type != "cuda":
        return "it needs a CUDA device"
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in half precision only, not in {str(dtype).removeprefix('torch.')}"
    if model_class is not None and not getattr(model_class, "_supports_flash_attn", True):
        return f"{model_class.__name__} does not support it"
    return ""
