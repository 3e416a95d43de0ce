"""What a training needs before its first step: a prepared model, the optimizer, its rules."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow

from expunge.core.errors import Fault, UserError
from expunge.methods.objective import Objective
from expunge.models.parallel import Parallel
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.groups import decay_groups
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule

logger = logging.getLogger(__name__)

OptimizerFactory = Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer]
"""Builds the optimizer of a model, such as the result of `optim.build.optimizer_factory`."""
RulesFactory = Callable[[torch.optim.Optimizer, WeightMask | None], Sequence[StepRule]]
"""Builds the rules of an optimizer's step, the mask's last; such as a bound `optim.build.build_rules`."""

SPECIAL_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id")


def prepare_model(
    model: Any, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase | None, parallel: Parallel
) -> None:
    """Put the model on its device, with the settings of `trainer.args` for its forward pass.

    Args:
        model: as loaded, not wrapped.
        args: arguments of the training.
        tokenizer: its special tokens go into the saved configuration.
        parallel: how the work is split; the weights are split now, if they are to be.
    """
    if parallel.sharded:
        parallel.shard(model)
    elif not getattr(model, "is_quantized", False):
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
        # These choose the layers and the place of what they store; the rest is for torch's function.
        layers = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
        getattr(model, f"{checkpointing}_enable")(**{f"{checkpointing}_kwargs": given or None}, **layers)


def align_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's special tokens into the model's configurations; several eos tokens are kept."""
    config, generation = model.config.get_text_config(), getattr(model, "generation_config", None)
    for name in SPECIAL_TOKENS:
        token = getattr(tokenizer, name)
        places = [place for place in (config, generation) if place is not None]
        known = [_listed(getattr(place, name, None)) for place in places]
        if token is None or all(token in ids for ids in known):
            continue
        for place, ids in zip(places, known, strict=True):
            is_list = place is generation or isinstance(getattr(place, name, None), list)
            others = [other for other in ids if other is not None and other != token]
            setattr(place, name, [token, *others] if name == "eos_token_id" and is_list else token)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def add_embedding_noise(model: Any, alpha: float) -> RemovableHandle:
    """NEFTune (arXiv:2310.05914): uniform noise of size alpha / sqrt(T D) on input embeddings in training.

    Returns:
        The hook; `remove` ends the noise.
    """

    def add(module: nn.Module, _: Any, output_BTD: Tensor) -> Tensor:
        if not module.training:
            return output_BTD
        size = alpha / torch.sqrt(torch.tensor(output_BTD.size(1) * output_BTD.size(2)))
        return output_BTD + torch.zeros_like(output_BTD).uniform_(-size, size)  # type: ignore[arg-type]

    handle: RemovableHandle = model.get_input_embeddings().register_forward_hook(add)
    return handle


def optimizer_of(
    model: nn.Module, args: TrainingArguments, factory: OptimizerFactory | None = None
) -> torch.optim.Optimizer:
    """The optimizer of `trainer.optimizer`, else the one that `trainer.args.optim` names.

    Args:
        model: on its device, not wrapped.
        args: arguments of the training.
        factory: builds the optimizer of `trainer.optimizer`, if one is chosen.

    Raises:
        UserError: nothing is trainable, or the optimizer needs the whole model.
    """
    if factory is not None:
        return factory(model, args)
    groups = decay_groups(model, args.weight_decay)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    # GaLore and similar optimizers choose their own groups.
    groups = kwargs.pop("params", groups)
    steps_alone = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if not steps_alone or {"model", "optimizer_dict"} & kwargs.keys():
        raise UserError(
            f"trainer.args.optim={args.optim} is not supported: it updates the model in its own loop",
            "choose another one, or one of the config group `optimizer`",
        )
    optimizer: torch.optim.Optimizer = cls(groups, **kwargs)
    if "bitsandbytes" in cls.__module__ and kwargs.get("optim_bits") == 8:
        # As in transformers: moments of embeddings stay in 32 bits.
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
    """The rules of an optimizer's step.

    Raises:
        UserError: a rule applies to the terms of a side that has no terms, so it would do nothing.
    """
    made = factory(optimizer, mask) if factory is not None else [mask.rule()] if mask is not None else []
    sides = sorted({term.side for term in objective.terms})
    faults = [
        Fault(
            f"{type(rule).__name__} has side={side!r}, but the method has no term averaged over that side",
            f"give side=null, or one of {', '.join(sides)}",
        )
        for rule in made
        if (side := getattr(rule, "side", None)) is not None and side not in sides
    ]
    if faults:
        raise UserError.of(faults)
    return tuple(made)
