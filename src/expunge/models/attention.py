"""Choose the attention kernel of a model on this machine: flash, else sdpa, else eager."""

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
    """Choose the attention implementation for loading a model.

    Args:
        asked: the given `attn_implementation`; None = the default of transformers.
        config: configuration of the model.
        where: the device of the computation.
        dtype: the dtype of the computation.
        notices: list that gets a notice if another implementation is used.

    Returns:
        The value of `attn_implementation` to pass to transformers.

    Raises:
        UserError: the implementation is unknown.
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
        notices.append(f"attn_implementation={asked}: this model does not support sdpa, using eager")
    return chosen


def attention_of(model: Any) -> str:
    """The attention implementation of a model: the one it was loaded with, else the default of transformers.

    transformers (5.23) has only a private name for this, so `load_base` stores it on the model.
    """
    own_choice = getattr(model, "get_correct_attn_implementation", lambda _: "eager")
    return str(getattr(model, WRITTEN_DOWN, None) or own_choice(None))


WRITTEN_DOWN = "expunge_attention"
"""Attribute of a loaded model with the name of its attention implementation."""


def _support_of(config: Any) -> Callable[[str], bool]:
    """Returns a check whether a model of this configuration supports an implementation; it needs no weights.

    A class from remote code checks again when it is loaded, and that check decides.
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
            # A package is missing. The caller has checked for it already.
            return True
        return True

    return supports


def _flash_lacks(asked: str, supports: Callable[[str], bool], where: torch.device, dtype: torch.dtype) -> str:
    """What is missing for flash attention; empty if nothing is missing."""
    if where.type != "cuda":
        return "it needs a CUDA device"
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes only in half precision, not in {str(dtype).removeprefix('torch.')}"
    return "" if supports(asked) else "this model does not support it"
