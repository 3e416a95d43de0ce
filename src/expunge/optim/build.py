"""The optimizer of a bound configuration, and the rules around its step.

A training loop uses it as follows (`rules` says which hook is called when):

    factory = optimizer_factory(bound)               # None = not chosen: trainer.args.optim applies
    optimizer = factory(model, args)
    rules = build_rules(rules_of(bound), optimizer, mask)
    for rule in rules: rule.attach(model, optimizer)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from expunge.config.stepping import OPTIMIZER, RULE
from expunge.core.binding import Bound
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.attribution import build_mask
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.groups import decay_groups
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule
from expunge.optim.sophia import Sophia


def optimizer_factory(
    bound: Mapping[str, Bound],
) -> Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer] | None:
    """A function that builds the optimizer from model and arguments; None if no optimizer is configured.

    It covers the trainable parameters of the model, without weight decay on norms and biases.
    """
    if OPTIMIZER not in bound:
        return None
    chosen = bound[OPTIMIZER]

    def build(model: nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
        groups = decay_groups(model, args.weight_decay)
        optimizer: torch.optim.Optimizer = chosen.load()(groups, args, **chosen.kwargs)
        return optimizer

    return build


def rules_of(bound: Mapping[str, Bound]) -> list[Bound]:
    """The rules of a configuration, in their order there."""
    return [rule for key, rule in bound.items() if key.startswith(f"{RULE}.")]


def build_rules(
    chosen: Sequence[Bound], optimizer: torch.optim.Optimizer, mask: WeightMask | None = None
) -> list[StepRule]:
    """The rules around the step of an optimizer, in the order in which they are called.

    Sophia adds the rule that estimates its curvature; a mask comes last.
    """
    rules: list[StepRule] = [SophiaCurvature(optimizer)] if isinstance(optimizer, Sophia) else []
    rules += [rule.load()(**rule.kwargs) for rule in chosen]
    return rules if mask is None else [*rules, mask.rule()]


def mask_of(chosen: Bound, model: nn.Module, *, seed: int = 0, **data: Any) -> WeightMask:
    """The mask from a bound score; `data` is forget, retain and fingerprint of `attribution.build_mask`."""
    given = {name: value for name, value in chosen.options.items() if name in chosen.given}
    return build_mask(model, chosen.load(), **data, **{"seed": seed, **given}, **chosen.kwargs)
