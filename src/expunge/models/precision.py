"""The precision of a run: the requested one, or the fallback on this machine."""

from __future__ import annotations

from typing import Any

import torch

from expunge.config.model_keys import DTYPES as NAMES
from expunge.core.errors import UserError, unknown
from expunge.lm.runtime import supports_bf16

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, own) for name, own in NAMES.items()}


def parse_dtype(key: str, value: Any) -> torch.dtype:
    """Read the name of a dtype.

    Args:
        key: the configuration key, for the message.
        value: a name, with or without "torch.", or a torch dtype.

    Raises:
        UserError: the dtype is unknown.
    """
    if isinstance(value, torch.dtype):
        return value
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError.of([unknown(key, str(value), [*DTYPES, "auto"])])
    return DTYPES[name]


def compute_dtype(asked: Any, of_checkpoint: Any, where: torch.device, notices: list[str]) -> torch.dtype:
    """The dtype of the computation on this machine.

    Args:
        asked: the given `torch_dtype`; None = float32, "auto" = the dtype of the checkpoint.
        of_checkpoint: the dtype in the configuration of the checkpoint, or None.
        where: the device of the computation.
        notices: list that gets a notice if the machine cannot do what was requested.

    Returns:
        The requested dtype; float32 if the device only emulates bfloat16, or for float16 on a CPU.
    """
    if str(asked) == "auto":
        asked = of_checkpoint
    dtype = torch.float32 if asked is None else parse_dtype("torch_dtype", asked)
    if dtype is torch.bfloat16 and not supports_bf16(where):
        notices.append(f"torch_dtype=bfloat16: this {where.type} has no bfloat16 arithmetic, using float32")
        return torch.float32
    if dtype is torch.float16 and where.type == "cpu":
        notices.append("torch_dtype=float16: a CPU does not compute in float16, using float32")
        return torch.float32
    return dtype
