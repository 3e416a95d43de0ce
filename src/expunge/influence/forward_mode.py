"""Tensors with tangents: forward-mode differentiation of torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from expunge.core.errors import UserError


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """A tensor with a tangent; call it inside `forward_ad.dual_level()`."""
    made: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


def unpacked(value: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; the tangent is zero if no input has a tangent."""
    plain, tangent = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
    return plain, torch.zeros_like(plain) if tangent is None else tangent


@contextmanager
def reporting_missing_rule(model: nn.Module) -> Iterator[None]:
    """Report an operation without a forward derivative as a `UserError`; hide a warning of torch."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
            yield
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not (
            isinstance(error, NotImplementedError) or "forward AD" in str(error)
        ):
            raise
        reason = " ".join(str(error).split())[:200]
        hint = "choose difficulty.algorithm=naive or ghost, or model.model_args.attn_implementation=eager"
        raise UserError(
            f"{type(model).__name__} has an operation without a forward derivative: {reason}", hint
        ) from error
