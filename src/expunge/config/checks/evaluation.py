"""Checks of the `eval` section: suites, metrics, views, the retain model's logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking


def check_eval(check: Checking) -> None:
    """Every suite's metrics, numbers and files."""
    for suite, node in check.cfg.section("eval").items():
        if isinstance(node, dict):
            _suite(check, f"eval.{suite}", node)
    if check.cfg.get("mode") == "eval" and not check.cfg.section("eval"):
        check.fault("there is nothing to evaluate: the group eval is empty", "choose a suite: eval=tofu")


def _suite(check: Checking, key: str, node: dict[str, Any]) -> None:
    check.number(f"{key}.batch_size", above=0, whole=True)
    check.number(f"{key}.generation.max_new_tokens", above=0, whole=True)
    logs = node.get("retain_logs_path")
    if logs is not None:
        typed = (
            check.typed("retain_logs_path", logs)
            if logs == check.cfg.get("retain_logs_path")
            else check.typed(f"{key}.retain_logs_path", logs)
        )
        path = Path(str(logs)).expanduser()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            check.fault(
                f"{typed}: {what}", f"looked for {path.resolve()}; it is the retain model's evaluation file, such as .../TOFU_EVAL.json"
            )
    for name, metric in (node.get("metrics") or {}).items():
        if not isinstance(metric, dict):
            check.fault(f"{key}.metrics.{name} has no handler", f"known metrics: {', '.join(node['metrics'])}")
            continue
        check.signature(f"{key}.metrics.{name}.handler", metric.get("handler"))
