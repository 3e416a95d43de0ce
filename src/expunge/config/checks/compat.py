"""Checks of the `compat` section: every switch names a component and a keyword that are there."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import expunge
from expunge.config.checks.checking import Checking
from expunge.core.errors import nearest
from expunge.core.handlers import REQUIRED, Signature, read_signature

# Components that are no functions of a handler; whoever builds them checks their keywords.
NAMED_COMPONENTS = ("encode", "driver")
FOLDERS = ("methods", "evaluation/metrics")


def check_compat(check: Checking) -> None:
    """Hold the switches against the losses and metrics of the package and of this run."""
    switches = check.cfg.section("compat.switches")
    if not switches:
        return
    known = component_signatures()
    for handler in _own_handlers(check):
        signature = read_signature(handler)
        known[signature.name] = signature
    for component, keywords in switches.items():
        key = f"compat.switches.{component}"
        # What was bound with the switches of a component has reported their faults.
        if component in NAMED_COMPONENTS or any(f"{key}." in fault.message for fault in check.faults):
            continue
        if component not in known:
            names = [*known, *NAMED_COMPONENTS]
            near = nearest(component, names, count=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
            check.fault(f"{key}: there is no component {component!r}", hint)
        else:
            # Required keywords are given by the run, not by the switches.
            signature = known[component]
            own = {
                name: None if default is REQUIRED else default for name, default in signature.keyword.items()
            }
            check.bind(key, replace(signature, keyword=own), keywords or {})


def component_signatures() -> dict[str, Signature]:
    """The public functions of the package that can be a component of a run, by name."""
    root = Path(expunge.__file__).parent
    found: dict[str, Signature] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.py")):
            module = ".".join(("expunge", *folder.split("/"), path.stem))
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, read_signature(f"{module}:{node.name}"))
    return found


def _own_handlers(check: Checking) -> list[str]:
    metrics = [
        node.get("handler")
        for suite in _dicts(check.cfg.section("eval"))
        for node in _dicts(suite.get("metrics"))
    ]
    handlers = [
        check.cfg.get("trainer.handler"),
        check.cfg.get("trainer.method_args.retain.handler"),
        *metrics,
    ]
    known = [
        handler
        for handler in handlers
        if isinstance(handler, str) and ":" in handler and not handler.startswith("expunge.")
    ]
    return [handler for handler in known if not any(handler in fault.message for fault in check.faults)]


def _dicts(node: Any) -> list[dict[str, Any]]:
    return [item for item in node.values() if isinstance(item, dict)] if isinstance(node, dict) else []
