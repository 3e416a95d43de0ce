"""AdamW (arXiv:1711.05101): torch's fused one, and those of bitsandbytes that keep their state in 8 bits or in paged memory."""

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
"""Weights below this number are kept in 32 bits by bitsandbytes, whatever is asked."""


def adamw(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """AdamW as torch has it.

    Args:
        groups: parameter groups, with and without weight decay.
        args: of the training.
        betas: decay of the two moments; None = `trainer.args.adam_beta1` and `adam_beta2`.
        eps: added to the denominator; None = `trainer.args.adam_epsilon`.
        fused: one kernel for all parameters; None = where the device has it.
    """
    return torch.optim.AdamW(
        groups,
        lr=args.learning_rate,
        betas=_betas(args, betas),
        eps=args.adam_epsilon if eps is None else eps,
        weight_decay=args.weight_decay,
        fused=_devices(groups) <= set(FUSED_ON) if fused is None else fused,
    )


def adamw_8bit(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits (arXiv:2110.02861), by bitsandbytes; torch's AdamW, with a notice, where that cannot run."""
    return _bitsandbytes("AdamW8bit", groups, args, betas, eps)


def paged_adamw(
    groups: list[dict[str, Any]],
    args: OptimizerArgs,
    *,
    betas: tuple[Decay, Decay] | None = None,
    eps: NotNegative | None = None,
) -> torch.optim.Optimizer:
    """AdamW whose moments move to the host's memory when the device's is full, by bitsandbytes; else as `adamw_8bit`."""
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
        logger.warning(
            "%s cannot be used: %s; taken as torch's AdamW, which takes the same step in full precision",
            name,
            reason,
        )
        return adamw(groups, args, betas=betas, eps=eps)
    optimizers = importlib.import_module("bitsandbytes").optim
    optimizer: torch.optim.Optimizer = getattr(optimizers, name)(
        groups,
        lr=args.learning_rate,
        betas=_betas(args, betas),
        eps=args.adam_epsilon if eps is None else eps,
        weight_decay=args.weight_decay,
    )
    return optimizer


def why_not_bitsandbytes(name: str, devices: set[str]) -> str:
    """Why an optimizer of bitsandbytes cannot move parameters on these devices; empty where it can.

    Which devices have which of them depends on bitsandbytes' version and build, and shows at the first step
    only: one is tried.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return 'bitsandbytes is not installed (pip install "expunge[quantized]")'
    for device in sorted(devices):
        trial = torch.nn.Parameter(torch.ones(TRIAL_SIZE, device=device))
        trial.grad = torch.ones_like(trial)
        try:
            getattr(importlib.import_module("bitsandbytes").optim, name)([trial]).step()
        except (RuntimeError, NotImplementedError, ValueError, AttributeError, AssertionError) as error:
            return (
                f"bitsandbytes cannot take its step on {device}: {type(error).__name__}: {str(error)[:200]}"
            )
    return ""


def _betas(args: OptimizerArgs, betas: tuple[float, float] | None) -> tuple[float, float]:
    return (args.adam_beta1, args.adam_beta2) if betas is None else (float(betas[0]), float(betas[1]))


def _devices(groups: list[dict[str, Any]]) -> set[str]:
    return {parameter.device.type for group in groups for parameter in group["params"]}
