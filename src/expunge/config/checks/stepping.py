"""Checks of how a step is taken: optimizer, rules and mask, and whether they fit the rest of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.short_names import SCORES
from expunge.config.stepping import (
    MASK,
    OPTIMIZER,
    READS,
    RULE,
    bind_mask,
    bind_optimizer,
    bind_rules,
    no_handler,
)
from expunge.core.handlers import Signature


def check_stepping(check: Checking) -> None:
    """Bind optimizer, rules and mask."""
    if "optimizer" not in check.broken:
        node = _node(check, OPTIMIZER, "optimizer")
        if node is not None:
            bind_optimizer(check, node)
            _one_optimizer(check)
            bind_rules(check, node.get("rules"))
            _rule_sides(check)
    if "mask" not in check.broken:
        node = _node(check, MASK, "mask")
        if node is not None:
            _mask(check, node)


def _node(check: Checking, key: str, group: str) -> dict[str, Any] | None:
    """The mapping at `key`; None without a choice, or if it is not a mapping (recorded as a fault)."""
    node = check.cfg.get(key)
    if node is not None and not isinstance(node, dict):
        check.refuse(key, node, f"this is a choice of the group {group}", f"write {group}={node}")
        return None
    return node or None


def _one_optimizer(check: Checking) -> None:
    if (bound := check.bound.get(OPTIMIZER)) is None:
        return
    for text in check.cfg.overrides:
        if text.lstrip("+").startswith(("trainer.args.optim=", "trainer.args.optim_args=")):
            chosen = f"{text}: {OPTIMIZER} already chooses the optimizer {bound.name}"
            check.fault(chosen, "give only one of the two")


def _rule_sides(check: Checking) -> None:
    """Check that a rule's side exists: in finetuning all rows are on the retain side."""
    finetunes = check.cfg.get("mode") == "finetune" or check.cfg.get("procedure") is not None
    for key, rule in check.bound.items():
        if key.startswith(f"{RULE}.") and finetunes and rule.value("side") not in (None, "retain"):
            hint = f"give {key}.side=null for all terms"
            check.refuse(f"{key}.side", rule.value("side"), "finetuning has no term of that side", hint)


def _mask(check: Checking, node: Mapping[str, Any]) -> None:
    if node.get("path") is not None:
        _mask_file(check, node)
    elif node.get("handler") is not None:
        bound = bind_mask(check, node)
        if bound is not None and not check.broken & {"experiment", "data", "data/datasets"}:
            _mask_sides(check, bound.signature)
    elif given := {name: value for name, value in node.items() if name not in ("handler", "path")}:
        no_handler(check, MASK, given, SCORES)


def _mask_file(check: Checking, node: Mapping[str, Any]) -> None:
    path = Path(str(node["path"])).expanduser()
    if str(node["path"]) != "???" and not path.is_file():
        check.refuse(f"{MASK}.path", node["path"], "no such file", f"looked for {path.resolve()}")
    if further := sorted(set(node) - {"path", "handler"}):
        check.fault(
            f"{MASK}.path is given with {', '.join(further)}",
            "these keys are for computing a mask, not for reading one: leave them out",
        )


def _mask_sides(check: Checking, signature: Signature) -> None:
    for side in sorted({READS[name] for name in signature.positional} - {""}):
        where = "train" if check.cfg.get("mode") == "finetune" and side == "retain" else side
        if not check.cfg.section(f"data.{where}"):
            check.fault(
                f"data.{where} is empty, and the mask {signature.name} reads it",
                f"give data.{where}, or choose another mask",
            )
