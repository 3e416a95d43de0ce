"""How a step is taken, as given in the configuration: optimizer, its rules, and mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from expunge.config.short_names import OPTIMIZERS, RULES, SCORES
from expunge.core.annotations import type_of
from expunge.core.binding import Binder, Bound, Option
from expunge.core.errors import unknown
from expunge.core.handlers import read_signature

OPTIMIZER, RULE, MASK = "trainer.optimizer", "trainer.optimizer.rules", "trainer.mask"
"""The keys of the bound optimizer and mask; a rule is bound one key below `RULE`."""
MAKER = "expunge.optim.attribution:build_mask"
# Valid keys of `trainer.mask` beside the options of its score; `MAKER` has the defaults.
MASK_OPTIONS = ("ratio", "params", "seed")
# The quantities that a score may read, and the side of their rows.
READS = {
    "weight_P": "",
    "forget_grad_P": "forget",
    "retain_grad_P": "retain",
    "input_rms_P": "forget",
    "uniform_P": "",
}
# Keys that belong to TrainingArguments.
OF_ARGS = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "wd": "weight_decay",
}


def bind_optimizer(binder: Binder, node: Mapping[str, Any]) -> Bound | None:
    """Bind `trainer.optimizer`: a handler and its options. `bind_rules` binds its `rules`."""
    given = {name: value for name, value in node.items() if name not in ("handler", "rules")}
    if node.get("handler") is None:
        no_handler(binder, OPTIMIZER, node, OPTIMIZERS)
        return None
    signature = binder.find(f"{OPTIMIZER}.handler", node["handler"], OPTIMIZERS, "optimizer")
    if signature is None:
        return None
    if len(signature.positional) != 2:
        text = binder.typed(f"{OPTIMIZER}.handler", signature.handler)
        binder.fault(
            f"{text}: {signature.name} does not build an optimizer",
            "an optimizer factory takes two positional parameters: the parameter groups and the arguments",
        )
        return None
    for name in [name for name in given if name in OF_ARGS and name not in signature.keyword]:
        value = given.pop(name)
        text = binder.typed(f"{OPTIMIZER}.{name}", value)
        binder.fault(
            f"{text}: {signature.name} does not read it", f"give trainer.args.{OF_ARGS[name]}={value}"
        )
    return binder.bind(OPTIMIZER, signature, given)


def bind_rules(binder: Binder, rules: Any) -> None:
    """Bind `trainer.optimizer.rules`: name -> {handler, ...options}, or null = no rule.

    Without a handler, the name is the handler.
    """
    if rules is not None and not isinstance(rules, Mapping):
        text = binder.typed(RULE, rules)
        binder.fault(
            f"{text}: rules are given by name, not as one value",
            f"write {RULE}.sam.rho=0.01, or optimizer=sam",
        )
        return
    for name, rule in (rules or {}).items():
        key = f"{RULE}.{name}"
        if isinstance(rule, Mapping):
            signature = binder.find(key, rule.get("handler", name), RULES, "rule", places=0)
            if signature is not None:
                binder.bind(
                    key, signature, {item: value for item, value in rule.items() if item != "handler"}
                )
        elif rule is not None:
            text = binder.typed(key, rule)
            hint = f"write {key}.OPTION=VALUE"
            binder.fault(f"{text}: a rule is a mapping of its options, or null", hint)


def bind_mask(binder: Binder, node: Mapping[str, Any]) -> Bound | None:
    """Bind the score of `trainer.mask`, with the options `ratio`, `params` and `seed` beside its keywords."""
    given = {name: value for name, value in node.items() if name not in ("handler", "path")}
    signature = binder.find(f"{MASK}.handler", node.get("handler"), SCORES, "mask")
    if signature is None:
        return None
    before = len(binder.faults)
    for name in signature.positional:
        if name not in READS:
            text, found = (
                binder.typed(f"{MASK}.handler", signature.handler),
                unknown("quantity", name, [*READS]),
            )
            binder.fault(f"{text} reads an {found.message}", found.hint)
    try:
        re.compile(str(given.get("params") or ""))
    except re.error as error:
        text = binder.typed(f"{MASK}.params", given["params"])
        binder.fault(f"{text}: not a regular expression: {error}", "use the syntax of Python's re module")
    maker = read_signature(MAKER)
    options = {name: Option(maker.keyword[name], type_of(maker, name)) for name in MASK_OPTIONS}
    bound = binder.bind(MASK, signature, given, options=options)
    return bound if len(binder.faults) == before else None


def no_handler(binder: Binder, key: str, given: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Record the fault of options without a handler."""
    group = key.rpartition(".")[2]
    text = f"{key} has no handler, and its options are given: {', '.join(given)}"
    binder.fault(text, f"choose one: {group}={'|'.join(names)}")
