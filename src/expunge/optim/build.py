"""From the groups `trainer.optimizer` and `trainer.mask` to an optimizer and the rules about its step.

A training loop plugs this in at two places (see `rules` for what it calls when):

    factory = optimizer_factory(cfg.section("trainer.optimizer"))    # None where the group is absent: trainer.args.optim says which
    optimizer = factory(model, args)                                 # in place of Trainer.create_optimizer
    rules = build_rules(cfg.section("trainer.optimizer"), optimizer, mask)
    for rule in rules: rule.attach(model, optimizer)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import UserError, unknown
from expunge.lm.labels import Side
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.attribution import build_mask
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.groups import decay_groups
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule
from expunge.optim.sophia import Sophia

OPTIMIZERS = {
    "adamw": "expunge.optim.adamw:adamw",
    "adamw_8bit": "expunge.optim.adamw:adamw_8bit",
    "paged_adamw": "expunge.optim.adamw:paged_adamw",
    "paged_adamw_8bit": "expunge.optim.adamw:paged_adamw_8bit",
    "sgd": "expunge.optim.sgd:sgd",
    "sophia": "expunge.optim.sophia:sophia",
}
RULES = {"sam": "expunge.optim.sam:SAM", "random_smoothing": "expunge.optim.random_smoothing:RandomSmoothing"}
SCORES = {
    "wagle": "expunge.optim.scores:wagle",
    "magnitude": "expunge.optim.scores:magnitude",
    "forget_gradient": "expunge.optim.scores:forget_gradient",
    "snip": "expunge.optim.scores:snip",
    "wanda": "expunge.optim.scores:wanda",
    "random": "expunge.optim.scores:uniform",
}
OF_ARGS = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "wd": "weight_decay",
}

Spec = str | Mapping[str, Any]


def build_optimizer(spec: Spec, model: nn.Module, args: OptimizerArgs) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters of a model, without weight decay on norms and biases.

    Args:
        spec: a name (`adamw`, `sophia`, ...), "module:function", or a mapping with `handler` (either of
            these) and keyword arguments; a key `rules` is not the optimizer's and is passed over.
        model: the model, on its device.
        args: learning rate, weight decay and Adam's constants: those of TrainingArguments.

    Returns:
        The optimizer.

    Raises:
        UserError: an unknown name or keyword, a value out of range, or nothing to train.
    """
    handler, given = _split(spec, OPTIMIZERS, "optimizer")
    build = _find(handler, OPTIMIZERS, "optimizer")
    for key in [key for key in given if key in OF_ARGS and key not in _options(build)]:
        raise UserError(
            f"trainer.optimizer.{key} is not read", f"give trainer.args.{OF_ARGS[key]}={given[key]}"
        )
    _check_options(f"trainer.optimizer ({handler})", build, given)
    optimizer: torch.optim.Optimizer = build(decay_groups(model, args.weight_decay), args, **given)
    return optimizer


def optimizer_factory(
    spec: Spec | None,
) -> Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer] | None:
    """What builds the optimizer once model and arguments are there; None where nothing was chosen."""
    return partial(build_optimizer, spec) if spec else None


def build_rules(
    spec: Spec | None, optimizer: torch.optim.Optimizer, mask: WeightMask | None = None
) -> list[StepRule]:
    """The rules about the step of an optimizer, in the order in which they are called.

    Args:
        spec: as for `build_optimizer`; its key `rules` holds by name a mapping with `handler` and keyword
            arguments, or null for none.
        optimizer: what was built; Sophia brings the rule that estimates its curvature.
        mask: the mask the optimizer is held to.

    Raises:
        UserError: an unknown rule or keyword.
    """
    rules: list[StepRule] = [SophiaCurvature(optimizer)] if isinstance(optimizer, Sophia) else []
    listed = {} if spec is None or isinstance(spec, str) else spec.get("rules") or {}
    for name, rule in listed.items():
        if rule is None:
            continue
        handler, given = _split({"handler": name, **rule}, RULES, "rule")
        make = _find(handler, RULES, "rule")
        _check_options(f"trainer.optimizer.rules.{name}", make, given)
        rules.append(make(**given))
    return rules if mask is None else [*rules, mask.rule()]


def mask_of(
    spec: Spec | None,
    model: nn.Module,
    *,
    forget: Iterable[Side] | None = None,
    retain: Iterable[Side] | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
) -> WeightMask | None:
    """The mask that a configuration asks for: read from `path`, or made by a score.

    Args:
        spec: null for none; else a score's name, or a mapping with `handler` and the options of
            `attribution.build_mask` and of the score, or with `path`, the file of a mask.
        model: as it is before unlearning, on its device.
        forget: batches of the forget rows; gone through once for each quantity that the score reads.
        retain: batches of the retain rows.
        seed: of the run.
        fingerprint: of the model, where it is known.

    Raises:
        UserError: an unknown score or option, missing data, or a mask of another model.
    """
    if not spec or (not isinstance(spec, str) and not spec.get("handler") and not spec.get("path")):
        return None
    if not isinstance(spec, str) and spec.get("path"):
        if further := sorted(set(spec) - {"path", "handler"}):
            raise UserError(
                f"trainer.mask.path is given with {', '.join(further)}",
                "a mask that is read has been made: leave them out",
            )
        return WeightMask.load(Path(str(spec["path"])).expanduser(), model, fingerprint)
    handler, given = _split(spec, SCORES, "mask")
    given.pop("path", None)
    return build_mask(
        model,
        _find(handler, SCORES, "mask"),
        forget=forget,
        retain=retain,
        fingerprint=fingerprint,
        **{"seed": seed, **given},
    )


def _split(spec: Spec, known: Mapping[str, str], kind: str) -> tuple[str, dict[str, Any]]:
    """The handler as "module:name", and what is given to it."""
    given = {"handler": spec} if isinstance(spec, str) else dict(spec)
    given.pop("rules", None)
    name = given.pop("handler", None)
    if not isinstance(name, str):
        raise UserError(f"the {kind} has no handler", f"give one of: {', '.join(known)}, or module:function")
    if ":" not in name and name not in known:
        raise UserError.of([unknown(kind, name, list(known))])
    return known.get(name, name), given


def _find(handler: str, known: Mapping[str, str], kind: str) -> Callable[..., Any]:
    module_name, _, name = handler.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{kind} {handler}: there is no module {error.name!r}",
            f"known: {', '.join(known)}, or module:function",
        ) from error
    if not callable(found):
        raise UserError(
            f"{kind} {handler}: {module_name} has no function {name!r}", f"known: {', '.join(known)}"
        )
    made: Callable[..., Any] = found
    return made


def _options(function: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


def _check_options(where: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    options = _options(function)
    faults = [unknown(f"option of {where}", name, options) for name in given if name not in options]
    if faults:
        raise UserError.of(faults)
