"""Checks of how a step is taken: `trainer.optimizer` with its rules, and `trainer.mask`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.signatures import Signature, module_file, read_names, read_signature
from expunge.core.errors import unknown

BUILD, SCORES, MAKER = "expunge.optim.build", "expunge.optim.scores", "expunge.optim.attribution:build_mask"
# What `trainer.mask` may hold beside the options of its score; the maker of masks has the defaults.
MASK_OPTIONS = ("ratio", "params", "seed")
# Which quantities of a score come from which side's rows.
READ_FROM = {"forget_grad_P": "forget", "input_rms_P": "forget", "retain_grad_P": "retain"}


def check_stepping(check: Checking) -> None:
    """Hold optimizer, rules and mask against the signatures of what they name."""
    if "optimizer" not in check.broken:
        _optimizer(check)
        _rules(check)
    if "mask" not in check.broken:
        _mask(check)


@cache
def named(constant: str) -> Mapping[str, str]:
    """A dict of strings in the source of the room that builds optimizers and masks: short names and their handlers."""
    path = module_file(BUILD)
    assert path is not None, "part of this package"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == constant
        ):
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"{BUILD} has no {constant}")


def _node(check: Checking, key: str, group: str) -> dict[str, Any] | None:
    """The mapping at `key`; None where nothing was chosen, or, with a fault noted, where it is no mapping."""
    node = check.cfg.get(key)
    if node is not None and not isinstance(node, dict):
        check.fault(
            f"{check.typed(key, node)}: this is a choice of the group {group}", f"write {group}={node}"
        )
        return None
    return node or None


def _signature(
    check: Checking, key: str, handler: Any, names: Mapping[str, str], kind: str
) -> Signature | None:
    """The signature of a handler: `module:function`, or one of the short names."""
    if isinstance(handler, str) and ":" not in handler and handler not in names:
        fault = unknown(kind, handler, list(names))
        check.fault(f"{check.typed(key, handler)}: {fault.message}", f"{fault.hint}, or module:function")
        return None
    return check.signature(key, names.get(handler, handler) if isinstance(handler, str) else handler)


def _optimizer(check: Checking) -> None:
    key = "trainer.optimizer"
    node = _node(check, key, "optimizer")
    if node is None:
        return
    if node.get("handler") is None:
        check.fault(
            f"{key} has no handler, and {', '.join(node)} are given",
            f"choose one: optimizer={'|'.join(named('OPTIMIZERS'))}",
        )
        return
    signature = _signature(check, f"{key}.handler", node["handler"], named("OPTIMIZERS"), "optimizer")
    if signature is None:
        return
    if len(signature.positional) != 2:
        text = check.typed(f"{key}.handler", signature.handler)
        check.fault(
            f"{text}: {signature.name} does not build an optimizer",
            "one takes two things by place, the parameter groups and the arguments",
        )
        return
    of_args = named("OF_ARGS")
    given = {name: value for name, value in node.items() if name not in ("handler", "rules")}
    for name in [name for name in given if name in of_args and name not in signature.keyword]:
        value = given.pop(name)
        check.fault(
            f"{check.typed(f'{key}.{name}', value)}: {signature.name} does not read it",
            f"give trainer.args.{of_args[name]}={value}",
        )
    check.bind(key, given, signature, signature.keyword)
    for text in check.cfg.overrides:
        if text.lstrip("+").startswith(("trainer.args.optim=", "trainer.args.optim_args=")):
            check.fault(
                f"{text}: the optimizer is {signature.name} already, by trainer.optimizer",
                "leave out one of the two",
            )


def _rules(check: Checking) -> None:
    key = "trainer.optimizer.rules"
    rules = check.cfg.get(key) if isinstance(check.cfg.get("trainer.optimizer"), dict) else None
    if rules is None:
        return
    if not isinstance(rules, dict):
        check.fault(
            f"{check.typed(key, rules)}: rules are given by name",
            f"write {key}.sam.rho=0.01, or optimizer=sam",
        )
        return
    for name, rule in rules.items():
        if rule is None:
            continue
        if not isinstance(rule, dict):
            check.fault(
                f"{check.typed(f'{key}.{name}', rule)}: a rule is a mapping of its options, or null",
                f"write {key}.{name}.OPTION=VALUE",
            )
            continue
        signature = _signature(check, f"{key}.{name}", rule.get("handler", name), named("RULES"), "rule")
        if signature is None:
            continue
        given = {option: value for option, value in rule.items() if option != "handler"}
        check.bind(f"{key}.{name}", given, signature, signature.keyword)
        _side(check, f"{key}.{name}.side", {**signature.keyword, **given}.get("side"))


def _side(check: Checking, key: str, side: Any) -> None:
    """In finetuning all rows are the retain side; a rule about the terms of another would do nothing without a word."""
    finetunes = check.cfg.get("mode") == "finetune" or check.cfg.get("procedure") is not None
    if finetunes and side not in (None, "retain"):
        check.fault(
            f"{check.typed(key, side)}: finetuning has no term of that side",
            f"give {key}=null, which is all terms",
        )


def _mask(check: Checking) -> None:
    key = "trainer.mask"
    node = _node(check, key, "mask")
    if node is None:
        return
    given = {name: value for name, value in node.items() if name != "handler"}
    if node.get("path") is not None:
        _mask_file(check, given)
    elif node.get("handler") is not None:
        signature = _signature(check, f"{key}.handler", node["handler"], named("SCORES"), "mask")
        if signature is not None:
            _score(check, signature, given)
    elif given and set(given) != {"path"}:
        check.fault(
            f"{key} has no handler, and {', '.join(given)} are given",
            f"choose one: mask={'|'.join(named('SCORES'))}",
        )


def _mask_file(check: Checking, given: Mapping[str, Any]) -> None:
    path = Path(str(given["path"])).expanduser()
    if str(given["path"]) != "???" and not path.is_file():
        check.fault(
            f"{check.typed('trainer.mask.path', given['path'])}: no such file", f"looked for {path.resolve()}"
        )
    if further := sorted(set(given) - {"path"}):
        check.fault(
            f"trainer.mask.path is given with {', '.join(further)}",
            "a mask that is read has been made: leave them out",
        )


def _score(check: Checking, signature: Signature, given: Mapping[str, Any]) -> None:
    key = "trainer.mask"
    maker = read_signature(MAKER).keyword
    takes = {**signature.keyword, **{name: maker[name] for name in MASK_OPTIONS}}
    check.bind(key, {name: value for name, value in given.items() if name != "path"}, signature, takes)
    ratio = given.get("ratio", maker["ratio"])
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        check.fault(
            f"{check.typed(f'{key}.ratio', ratio)}: must be a share above 0 and at most 1",
            f"the default is {maker['ratio']}",
        )
    for name in signature.positional:
        if name not in read_names(SCORES, "READS"):
            fault = unknown("quantity", name, read_names(SCORES, "READS"))
            check.fault(
                f"{check.typed(f'{key}.handler', signature.handler)} reads an {fault.message}", fault.hint
            )
    if check.broken & {"experiment", "data", "data/datasets"}:
        return
    for side in sorted({READ_FROM[name] for name in signature.positional if name in READ_FROM}):
        where = "train" if check.cfg.get("mode") == "finetune" and side == "retain" else side
        if not check.cfg.section(f"data.{where}"):
            check.fault(
                f"data.{where} is empty, and the mask {signature.name} reads it",
                f"give data.{where}, or choose another mask",
            )
