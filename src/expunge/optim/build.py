"""The optimizer of a bound configuration, and the rules around its step.

A training loop uses it as follows (`rules` says which hook is called when):

    factory = optimizer_factory(bound)               # None = not chosen: trainer.args.optim applies
    optimizer = factory(model, args)
    rules = build_rules(rules_of(bound), optimizer, mask)
    for rule in rules: rule.attach(model, optimizer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from expunge.config.stepping import OPTIMIZER, RULE
from expunge.core.binding import Bound
from expunge.lm.labels import Side
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.attribution import build_mask
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.groups import decay_groups
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule
from expunge.optim.sophia import Sophia


def build_optimizer(chosen: Bound, model: nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters of a model, without weight decay on norms and biases.

    Args:
        chosen: the factory with its options.
        model: the model, on its device.
        args: learning rate, weight decay and Adam's constants, named as in TrainingArguments.

    Raises:
        UserError: the factory cannot be imported, or there is nothing to train.
    """
    optimizer: torch.optim.Optimizer = chosen.load()(
        decay_groups(model, args.weight_decay), args, **chosen.kwargs
    )
    return optimizer


def optimizer_factory(
    bound: Mapping[str, Bound],
) -> Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer] | None:
    """A function that builds the optimizer from model and arguments; None if no optimizer is configured."""
    return partial(build_optimizer, bound[OPTIMIZER]) if OPTIMIZER in bound else None


def rules_of(bound: Mapping[str, Bound]) -> list[Bound]:
    """The rules of a configuration, in their order there."""
    return [rule for key, rule in bound.items() if key.startswith(f"{RULE}.")]


def build_rules(
    chosen: Sequence[Bound], optimizer: torch.optim.Optimizer, mask: WeightMask | None = None
) -> list[StepRule]:
    """The rules around the step of an optimizer, in the order in which they are called.

    Args:
        chosen: the rules with their options.
        optimizer: the built optimizer; Sophia adds the rule that estimates its curvature.
        mask: the weights that the optimizer may change; None = all.
    """
    rules: list[StepRule] = [SophiaCurvature(optimizer)] if isinstance(optimizer, Sophia) else []
    rules += [rule.load()(**rule.kwargs) for rule in chosen]
    return rules if mask is None else [*rules, mask.rule()]


def mask_of(
    chosen: Bound,
    model: nn.Module,
    *,
    forget: Iterable[Side] | None = None,
    retain: Iterable[Side] | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
) -> WeightMask:
    """The mask from a score.

    Args:
        chosen: the score with its options and those of `attribution.build_mask`.
        model: the model before unlearning, on its device.
        forget: batches of the forget rows; iterated once for each quantity that the score reads.
        retain: batches of the retain rows.
        seed: of the run; the mask's own seed takes precedence.
        fingerprint: of the model, if known.

    Raises:
        UserError: missing data, or nothing to score.
    """
    given = {name: value for name, value in chosen.options.items() if name in chosen.given}
    return build_mask(
        model,
        chosen.load(),
        forget=forget,
        retain=retain,
        fingerprint=fingerprint,
        **{"seed": seed, **given},
        **chosen.kwargs,
    )
