"""Which precision a run computes in, and what the machine makes of it."""

from __future__ import annotations

from typing import Any

import torch

from expunge.config.model_keys import DTYPES as NAMES
from expunge.core.errors import UserError, unknown
from expunge.lm.runtime import supports_bf16

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, own) for name, own in NAMES.items()}


def parse_dtype(key: str, value: Any) -> torch.dtype:
    """Read a dtype's name.

    Args:
        key: the configuration key, for the message.
        value: a name, with or without "torch.", or a torch dtype.

    Raises:
        UserError: no such dtype.
    """
    if isinstance(value, torch.dtype):
        return value
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError.of([unknown(key, str(value), [*DTYPES, "auto"])])
    return DTYPES[name]


def compute_dtype(asked: Any, of_checkpoint: Any, where: torch.device, notices: list[str]) -> torch.dtype:
    """The dtype that a run computes in on this machine.

    Args:
        asked: `torch_dtype` as given; None = float32, "auto" = the checkpoint's own.
        of_checkpoint: the dtype that the checkpoint's configuration names, if it does.
        where: the device to compute on.
        notices: told when the machine cannot do what was asked.

    Returns:
        The dtype asked for; float32 where the device would only emulate it, or, for float16, not train in it.
    """
    if str(asked) == "auto":
        asked = of_checkpoint
    dtype = torch.float32 if asked is None else parse_dtype("torch_dtype", asked)
    if dtype is torch.bfloat16 and not supports_bf16(where):
        notices.append(
            f"torch_dtype=bfloat16: this {where.type} has no bfloat16 arithmetic, computing in float32"
        )
        return torch.float32
    if dtype is torch.float16 and where.type == "cpu":
        notices.append("torch_dtype=float16: float16 is not computed on a CPU, computing in float32")
        return torch.float32
    return dtype
