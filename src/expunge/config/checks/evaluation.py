"""Checks of the `eval` section: suites, metrics, views, the retain model's logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.data import check_split
from expunge.config.evaluation import bind_suite


def check_eval(check: Checking) -> None:
    """Every suite's metrics, views, numbers and files."""
    # With eval=null on the command line, values of an experiment for a suite remain.
    nodes = check.cfg.section("eval").items()
    suites = {name: node for name, node in nodes if isinstance(node, dict) and "metrics" in node}
    for name, node in suites.items():
        _suite(check, f"eval.{name}", node)
    if check.cfg.get("mode") == "eval" and not suites:
        check.fault("there is nothing to evaluate: the group eval is empty", "choose a suite: eval=tofu")


def _suite(check: Checking, key: str, node: dict[str, Any]) -> None:
    bind_suite(check, key, node, check.cfg.switches)
    _retain_logs(check, key, node.get("retain_logs_path"))
    views = node.get("views")
    for name, view in views.items() if isinstance(views, dict) else ():
        hf_args = view.get("hf_args") if isinstance(view, dict) else None
        if not isinstance(hf_args, dict) or "None" in str(hf_args.get("name")):
            continue
        # The rows of an optional view may be missing, unless the user named a file.
        if not view.get("optional") or str(hf_args.get("path")).startswith((".", "/", "~")):
            check_split(check, f"{key}.views.{name}.hf_args", hf_args)


def _retain_logs(check: Checking, key: str, logs: Any) -> None:
    if logs is None:
        return
    from_root = logs == check.cfg.get("retain_logs_path")
    where = "retain_logs_path" if from_root else f"{key}.retain_logs_path"
    path = Path(str(logs)).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        hint = "give the retain model's evaluation file, such as .../TOFU_EVAL.json"
        check.refuse(where, logs, what, f"looked for {path.resolve()}; {hint}")
