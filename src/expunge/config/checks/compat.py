"""Checks of the `compat` section: every switch names a component and a keyword that are there."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import expunge
from expunge.config.checks.checking import Checking
from expunge.config.method import KEY as METHOD
from expunge.core.errors import did_you_mean
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
    # The user's own losses and metrics.
    for key, bound in check.bound.items():
        if key.startswith(METHOD) or ".metrics." in key:
            known[bound.name] = bound.signature
    for component, keywords in switches.items():
        key = f"compat.switches.{component}"
        # What was bound with the switches of a component has reported their faults.
        if component in NAMED_COMPONENTS or any(f"{key}." in fault.message for fault in check.faults):
            continue
        if component not in known:
            names = [*known, *NAMED_COMPONENTS]
            hint = did_you_mean(component, names) or f"known: {', '.join(sorted(names))}"
            check.fault(f"{key}: there is no component {component!r}", hint)
        else:
            # Required keywords are given by the run, not by the switches.
            signature = known[component]
            own = {name: None if value is REQUIRED else value for name, value in signature.keyword.items()}
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
