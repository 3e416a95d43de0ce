"""References for adapter training: the same model in another state, without a second model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from expunge.core.errors import UserError, unknown
from expunge.core.needs import Need
from expunge.models.adapters import NAME, is_adapted
from expunge.models.outputs import unwrapped
from expunge.models.parallel import Parallel
from expunge.models.reference import FrozenCopy, ModelReference, Reference, evaluating, plan_reference

Chosen = Literal["none", "cached", "adapter_off", "frozen_adapter", "frozen"]
Asked = Literal["auto", "cached", "adapter_off", "frozen_adapter", "frozen"]
REFERENCE_ADAPTER = "reference"


class SameModel(ModelReference):
    """The model in training, in another state during a forward pass; arguments as for `ModelReference`.

    A forward pass restores module modes, the active adapter and `requires_grad`, so it can run between the
    forward pass and the backward pass of the trained model.
    """

    @contextmanager
    def _reading(self, where: torch.device) -> Iterator[None]:
        with _requires_grad_kept(self.model), evaluating(self.model), self._state():
            yield

    def _state(self) -> AbstractContextManager[object]:
        raise NotImplementedError


class AdapterOff(SameModel):
    """The base with its adapters disabled: the model before unlearning, if every adapter started at zero.

    It costs no memory. Arguments as for `ModelReference`.
    """

    def _prepared(self, model: nn.Module) -> nn.Module:
        _check_possible("adapter_off", why_not_off(model))
        return model

    def _state(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], self.model.disable_adapter())


class FrozenAdapter(SameModel):
    """A copy of a trained adapter under another name, active only in forward passes of the reference.

    The copy becomes part of the model and is never trained or saved. It costs the memory of the adapter
    weights. Arguments as for `ModelReference`.
    """

    def _prepared(self, model: nn.Module) -> nn.Module:
        _check_possible("frozen_adapter", why_not_copied(model))
        _add_copy(model)
        return model

    @contextmanager
    def _state(self) -> Iterator[None]:
        active = self.model.active_adapter
        self.model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            self.model.set_adapter(active)


def _check_possible(kind: str, reason: str) -> None:
    """Refuse a kind of reference for the reason why it is not possible, if there is one."""
    if reason:
        hint = "set reference=auto: it takes the cheapest exact reference"
        raise UserError(f"reference={kind} is not possible: {reason}", hint)


def starts_at_zero(model: nn.Module) -> bool:
    """Whether the current model has the same outputs with every adapter disabled."""
    return not why_not_off(model)


def why_not_off(model: nn.Module) -> str:
    """Why the model with adapters disabled differs from the current model; empty if it does not."""
    if not is_adapted(model):
        return "the model has no adapter"
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner: Any = unwrapped(model)
    if any(config.bias != "none" for config in inner.peft_config.values()):
        return "biases of the base are trained with the adapter and remain active when it is off"
    for name, module in inner.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return f"the module {name} is trained as a whole, not only through an adapter"
        if isinstance(module, BaseTunerLayer) and not (isinstance(module, LoraLayer) and _is_zero(module)):
            return (
                f"the adapter at {name} does not start at zero, so the model with the adapter off is not the "
                "model before unlearning"
            )
    return ""


def why_not_copied(model: nn.Module) -> str:
    """Why the model cannot have a frozen second adapter; empty if it can."""
    if not is_adapted(model):
        return "the model has no adapter"
    inner: Any = unwrapped(model)
    if REFERENCE_ADAPTER in inner.peft_config:
        return "the model already has a frozen adapter"
    return "biases of the base are trained with the adapter" if inner.peft_config[NAME].bias != "none" else ""


def plan_for(model: nn.Module, needs: Iterable[Need], asked: str = "auto") -> Chosen:
    """Choose the cheapest exact reference for a model, or check the requested one.

    Args:
        model: the model before unlearning, with its adapter if it has one.
        needs: all quantities that the terms read.
        asked: auto, or the name of one reference.

    Returns:
        The first that is possible: none (nothing reads a reference), cached (log-probs are enough),
        adapter_off (all adapters start at zero), frozen_adapter, frozen (there is no adapter, or the adapter
        also trains weights of the base).

    Raises:
        UserError: the reference is unknown, or the requested one is not possible here.
    """
    if asked not in get_args(Asked):
        raise UserError.of([unknown("reference", str(asked), get_args(Asked))])
    needs = list(needs)
    cheapest = plan_reference(needs)
    if cheapest == "none":
        return "none"
    if asked == "auto":
        if cheapest == "cached":
            return "cached"
        if starts_at_zero(model):
            return "adapter_off"
        return "frozen" if why_not_copied(model) else "frozen_adapter"
    if asked == "cached" and cheapest != "cached":
        reads = ", ".join(sorted({need.name for need in needs if need.from_reference and not need.cacheable}))
        raise UserError(
            f"reference=cached is not possible: the method reads {reads}, but only log-probs can be cached",
            "set reference=auto",
        )
    if asked in ("adapter_off", "frozen_adapter"):
        _check_possible(asked, why_not_off(model) if asked == "adapter_off" else why_not_copied(model))
    return cast(Chosen, asked)


def reference_for(
    model: nn.Module,
    needs: Iterable[Need],
    *,
    cached: Callable[[], Reference],
    asked: str = "auto",
    autocast_dtype: torch.dtype | None = None,
    hidden: str | Sequence[str] | None = None,
    parallel: Parallel | None = None,
) -> Reference | None:
    """Create the reference that `plan_for` chooses, before training starts and before the model is wrapped.

    `cached` computes a `CachedReference`; it is called only if `plan_for` chooses it. The other arguments are
    those of `plan_for` and `ModelReference`.

    Returns:
        The reference; None if nothing reads one.

    Raises:
        UserError: as in `plan_for`.
    """
    plan = plan_for(model, needs, asked)
    if plan == "none":
        return None
    if plan == "cached":
        return cached()
    kinds: dict[str, Callable[..., Reference]] = {
        "adapter_off": AdapterOff,
        "frozen_adapter": FrozenAdapter,
        "frozen": FrozenCopy,
    }
    return kinds[plan](model, autocast_dtype=autocast_dtype, hidden=hidden, parallel=parallel)


def _is_zero(layer: Any) -> bool:
    """Whether the adapters of a layer add nothing: one factor of each is zero; no bias and no magnitude."""
    if len(getattr(layer, "lora_magnitude_vector", ())):
        return False
    factors = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in layer.lora_A]
    factors += [(first, layer.lora_embedding_B[name]) for name, first in layer.lora_embedding_A.items()]
    biases = [second.bias for second in layer.lora_B.values() if second.bias is not None]
    return not any(first.any() and second.any() for first, second in factors) and not any(
        bool(bias.any()) for bias in biases
    )


@contextmanager
def _requires_grad_kept(model: nn.Module) -> Iterator[None]:
    """Restore `requires_grad` on exit, because peft changes it whenever adapters are switched."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _add_copy(model: Any) -> None:
    """Add a copy of the trained adapter under the reference name, frozen and not active."""
    import copy

    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    config = copy.deepcopy(model.peft_config[NAME])
    config.inference_mode = True
    weights = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    where = next(model.parameters()).device
    with _requires_grad_kept(model), torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        model.add_adapter(REFERENCE_ADAPTER, config)
        set_peft_model_state_dict(
            model,
            {name: value.detach().clone() for name, value in weights.items()},
            adapter_name=REFERENCE_ADAPTER,
        )
        # Freezes the copy. Frozen parts of the trained adapter stay frozen.
        model.set_adapter(NAME)
