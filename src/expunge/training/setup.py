"""What is made before the first step: the model made ready, the optimizer, its rules."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow

from expunge.core.errors import Fault, UserError
from expunge.methods.objective import Objective
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.groups import decay_groups
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule

logger = logging.getLogger(__name__)

OptimizerFactory = Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer]
"""Builds the optimizer of a model, such as `optim.build.optimizer_factory` gives."""
RulesFactory = Callable[[torch.optim.Optimizer, WeightMask | None], Sequence[StepRule]]
"""The rules about an optimizer's step, the mask's last, such as `optim.build.build_rules` with its specification bound."""

SPECIAL_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def prepare_model(model: Any, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Put the model on its device, with what `trainer.args` asks of its forward pass.

    Args:
        model: as loaded, not wrapped.
        args: of the training.
        tokenizer: whose special tokens the saved configuration will name.
    """
    if not getattr(model, "is_quantized", False):
        model.to(args.device)
    checkpoint_activations(model, args)
    if tokenizer is not None and hasattr(model, "config"):
        align_special_tokens(model, tokenizer)
    if DebugOption.UNDERFLOW_OVERFLOW in args.debug:
        DebugUnderflowOverflow(model)  # type: ignore[no-untyped-call]


def checkpoint_activations(model: Any, args: TrainingArguments) -> None:
    """Have the model compute its layers again in the backward pass, where `trainer.args` asks for it."""
    checkpointing = (
        "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    )
    if getattr(args, checkpointing):
        # transformers 5.22 renamed both the arguments and the method.
        given = dict(getattr(args, f"{checkpointing}_kwargs") or {})
        # Which layers, and where what they keep lives; the rest is for torch's checkpoint function.
        layers = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
        getattr(model, f"{checkpointing}_enable")(**{f"{checkpointing}_kwargs": given or None}, **layers)


def align_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special tokens into the model's configurations; several ends of text stay several."""
    config, generation = model.config.get_text_config(), getattr(model, "generation_config", None)
    for name in SPECIAL_TOKENS:
        token = getattr(tokenizer, name)
        places = [place for place in (config, generation) if place is not None]
        known = [_listed(getattr(place, name, None)) for place in places]
        if token is None or all(token in ids for ids in known):
            continue
        for place, ids in zip(places, known, strict=True):
            several = name == "eos_token_id" and (
                place is generation or isinstance(getattr(place, name, None), list)
            )
            others = [other for other in ids if other is not None and other != token]
            setattr(place, name, [token, *others] if several else token)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class EmbeddingNoise:
    """NEFTune (arXiv:2310.05914): uniform noise of size alpha / sqrt(T D) on the input embeddings, in training mode.

    Args:
        model: whose embeddings are hooked until `remove` is called.
        alpha: size of the noise.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self.alpha = alpha
        self._handle = model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: nn.Module, _: Any, output_BTD: Tensor) -> Tensor:
        if not module.training:
            return output_BTD
        size = self.alpha / torch.sqrt(torch.tensor(output_BTD.size(1) * output_BTD.size(2)))
        return output_BTD + torch.zeros_like(output_BTD).uniform_(-size, size)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Take the noise away."""
        self._handle.remove()


def optimizer_of(
    model: nn.Module, args: TrainingArguments, factory: OptimizerFactory | None = None
) -> torch.optim.Optimizer:
    """The optimizer that `trainer.optimizer` chose, else the one that `trainer.args.optim` names.

    Args:
        model: on its device, not wrapped.
        args: of the training.
        factory: of `trainer.optimizer`.

    Raises:
        UserError: nothing is trainable, or an optimizer that wants the whole model.
    """
    if factory is not None:
        return factory(model, args)
    groups = decay_groups(model, args.weight_decay)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    # GaLore and its kin choose their own groups.
    groups = kwargs.pop("params", groups)
    if (
        not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer))
        or {"model", "optimizer_dict"} & kwargs.keys()
    ):
        raise UserError(
            f"trainer.args.optim={args.optim} takes its own steps through the model",
            "choose another, or one of the group `optimizer`",
        )
    optimizer: torch.optim.Optimizer = cls(groups, **kwargs)
    if "bitsandbytes" in cls.__module__ and kwargs.get("optim_bits") == 8:
        # As transformers does: moments of embeddings stay in 32 bits.
        manager = importlib.import_module("bitsandbytes").optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def rules_of(
    factory: RulesFactory | None,
    optimizer: torch.optim.Optimizer,
    mask: WeightMask | None,
    objective: Objective,
) -> tuple[StepRule, ...]:
    """The rules about an optimizer's step.

    Raises:
        UserError: a rule about the terms of a side that has none, which would do nothing and say nothing.
    """
    made = factory(optimizer, mask) if factory is not None else [mask.rule()] if mask is not None else []
    sides = sorted({term.side for term in objective.terms})
    asked = [
        (type(rule).__name__, side) for rule in made if (side := getattr(rule, "side", None)) is not None
    ]
    faults = [
        Fault(
            f"{name} is about terms averaged over the side {side!r}, and there is none",
            f"give side=null, or of {', '.join(sides)}",
        )
        for name, side in asked
        if side not in sides
    ]
    if faults:
        raise UserError.of(faults)
    return tuple(made)
