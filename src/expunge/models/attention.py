"""Which attention kernel a model runs with on this machine: flash, else sdpa, else eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

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
    supports = _support_of(config)
    lacks = _flash_lacks(asked, supports, where, dtype) if asked.startswith("flash_attention") else ""
    chosen = asked
    if lacks:
        chosen = "sdpa"
        notices.append(f"attn_implementation={asked}: {lacks}, using sdpa")
    if chosen == "sdpa" and not supports("sdpa"):
        chosen = "eager"
        notices.append(f"attn_implementation={asked}: this model has no sdpa, using eager")
    return chosen


def attention_of(model: Any) -> str:
    """The implementation that a model runs with: the one it was loaded with, else transformers' own choice for it.

    transformers (5.23) tells this under a private name alone, so `load_base` writes it down.

    Args:
        model: not wrapped, with or without an adapter.
    """
    own_choice = getattr(model, "get_correct_attn_implementation", lambda _: "eager")
    return str(getattr(model, WRITTEN_DOWN, None) or own_choice(None))


WRITTEN_DOWN = "expunge_attention"
"""The attribute of a loaded model that names its attention."""


def _support_of(config: Any) -> Callable[[str], bool]:
    """Whether a model of this configuration runs with an implementation; asked of one without weights.

    A class from remote code has its own check at loading, which has the last word.
    """
    try:
        with torch.device("meta"):
            shape: Any = cast(Any, AutoModelForCausalLM).from_config(copy.deepcopy(config))
    except (ValueError, OSError, RuntimeError, NotImplementedError):
        return lambda _: True

    def supports(name: str) -> bool:
        try:
            shape.get_correct_attn_implementation(name)
        except ValueError:
            return False
        except ImportError:
            # A package is not there: whoever asks has looked for it.
            return True
        return True

    return supports


def _flash_lacks(asked: str, supports: Callable[[str], bool], where: torch.device, dtype: torch.dtype) -> str:
    """What is missing for flash attention; empty when nothing is."""
    if where.type != "cuda":
        return "it needs a CUDA device"
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in half precision only, not in {str(dtype).removeprefix('torch.')}"
    return "" if supports(asked) else "this model does not support it"
