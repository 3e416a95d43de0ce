"""Checks of the `eval` section: suites, metrics, views, the retain model's logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.data import check_split
from expunge.core.binding import Option
from expunge.core.errors import nearest

# Keys of a metric's entry beside the parameters of its function.
ENTRY_KEYS = ("handler", "summary", "generation", "enabled")


def check_eval(check: Checking) -> None:
    """Check every suite's metrics, views, numbers and files."""
    for suite, node in check.cfg.section("eval").items():
        if isinstance(node, dict) and "metrics" in node:
            _suite(check, f"eval.{suite}", node)
    # With eval=null, an experiment can still leave values of a suite, but no metrics.
    suites = [
        node for node in check.cfg.section("eval").values() if isinstance(node, dict) and "metrics" in node
    ]
    if check.cfg.get("mode") == "eval" and not suites:
        check.fault("there is nothing to evaluate: the group eval is empty", "choose a suite: eval=tofu")


def _suite(check: Checking, key: str, node: dict[str, Any]) -> None:
    check.number(f"{key}.batch_size", above=0, whole=True)
    check.number(f"{key}.generation.max_new_tokens", above=0, whole=True)
    _retain_logs(check, key, node.get("retain_logs_path"))
    metrics = node.get("metrics") or {}
    for name, metric in metrics.items():
        # null switches a metric off.
        if metric is None:
            continue
        if not isinstance(metric, dict) or "handler" not in metric:
            known = [
                other for other, entry in metrics.items() if isinstance(entry, dict) and "handler" in entry
            ]
            near = nearest(name, known, count=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            check.fault(
                f"{key}.metrics.{name}: unknown metric, it has no handler",
                f"{hint}known: {', '.join(known) or '(none)'}",
            )
            continue
        signature = check.find(f"{key}.metrics.{name}.handler", metric["handler"], {}, "metric")
        if signature is not None:
            beside = {entry: Option(None) for entry in (*signature.positional, *ENTRY_KEYS)}
            check.bind(f"{key}.metrics.{name}", signature, metric, options=beside)
    for name, view in (node.get("views") or {}).items():
        hf_args = view.get("hf_args") if isinstance(view, dict) else None
        if not isinstance(hf_args, dict) or "None" in str(hf_args.get("name")):
            continue
        # The rows of an optional view may be missing, unless the view names a local file.
        if not view.get("optional") or str(hf_args.get("path")).startswith((".", "/", "~")):
            check_split(check, f"{key}.views.{name}.hf_args", hf_args)


def _retain_logs(check: Checking, key: str, logs: Any) -> None:
    if logs is None:
        return
    from_root = logs == check.cfg.get("retain_logs_path")
    typed = check.typed("retain_logs_path" if from_root else f"{key}.retain_logs_path", logs)
    path = Path(str(logs)).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        check.fault(
            f"{typed}: {what}",
            f"looked for {path.resolve()}; give the retain model's evaluation file, .../TOFU_EVAL.json",
        )
