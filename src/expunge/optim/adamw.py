"""AdamW (arXiv:1711.05101): torch's, and those of bitsandbytes with their state in 8 bits or paged memory."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Any

import torch

from expunge.core.ranges import Decay, NotNegative
from expunge.optim.arguments import OptimizerArgs

logger = logging.getLogger(__name__)

FUSED_ON = ("cuda", "cpu", "mps", "xpu")
TRIAL_SIZE = 4096
"""For parameters with fewer weights, bitsandbytes always keeps the state in 32 bits."""


def adamw(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """AdamW of torch.

    Args:
        groups: parameter groups, with and without weight decay.
        args: training arguments.
        betas: decay of the two moments; None = `trainer.args.adam_beta1` and `adam_beta2`.
        eps: added to the denominator; None = `trainer.args.adam_epsilon`.
        fused: one kernel for all parameters; None = yes, if the device supports it.
    """
    fused = _devices(groups) <= set(FUSED_ON) if fused is None else fused
    return torch.optim.AdamW(groups, **_settings(args, betas, eps), fused=fused)


def adamw_8bit(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes with 8-bit moments (arXiv:2110.02861); else torch's AdamW, with a warning."""
    return _bitsandbytes("AdamW8bit", groups, args, betas, eps)


def paged_adamw(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes whose moments move to host memory if device memory is full; same fallback."""
    return _bitsandbytes("PagedAdamW32bit", groups, args, betas, eps)


def paged_adamw_8bit(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
) -> torch.optim.Optimizer:
    """`adamw_8bit` in paged memory."""
    return _bitsandbytes("PagedAdamW8bit", groups, args, betas, eps)


def _bitsandbytes(
    name: str,
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    betas: tuple[float, float] | None,
    eps: float | None,
) -> torch.optim.Optimizer:
    reason = why_not_bitsandbytes(name, _devices(groups))
    if reason:
        text = (
            "%s cannot be used: %s; torch's AdamW is used instead, it makes the same step in full precision"
        )
        logger.warning(text, name, reason)
        return adamw(groups, args, betas=betas, eps=eps)
    made: type[torch.optim.Optimizer] = getattr(importlib.import_module("bitsandbytes").optim, name)
    return made(groups, **_settings(args, betas, eps))


def why_not_bitsandbytes(name: str, devices: set[str]) -> str:
    """Why an optimizer of bitsandbytes cannot update parameters on these devices; empty if it can.

    The supported devices depend on the version and build of bitsandbytes and show only at the first step, so
    one step is tried.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return 'bitsandbytes is not installed (pip install "expunge[quantized]")'
    for device in sorted(devices):
        trial = torch.nn.Parameter(torch.ones(TRIAL_SIZE, device=device))
        trial.grad = torch.ones_like(trial)
        try:
            getattr(importlib.import_module("bitsandbytes").optim, name)([trial]).step()
        except (RuntimeError, NotImplementedError, ValueError, AttributeError, AssertionError) as error:
            return f"bitsandbytes cannot make a step on {device}: {type(error).__name__}: {str(error)[:200]}"
    return ""


def _settings(args: OptimizerArgs, betas: tuple[float, float] | None, eps: float | None) -> dict[str, Any]:
    given = (args.adam_beta1, args.adam_beta2) if betas is None else (float(betas[0]), float(betas[1]))
    eps = args.adam_epsilon if eps is None else eps
    return {"lr": args.learning_rate, "betas": given, "eps": eps, "weight_decay": args.weight_decay}


def _devices(groups: list[dict[str, Any]]) -> set[str]:
    return {parameter.device.type for group in groups for parameter in group["params"]}
