"""Settings of a task's suites: SOUL's metric for TOFU, and the rows that were forgotten."""

from __future__ import annotations

from typing import Any

from expunge.config.local_data import is_local_path
from expunge.core.errors import UserError
from expunge.soul.command import Given
from expunge.soul.data import DEFAULTS, RATIO, selection
from expunge.soul.router import Routed, route
from expunge.soul.writing import assign


def suite_overrides(given: Given, task: str, data_root: str) -> list[str]:
    """Overrides of the suites of a task: tofu, wmdp, copyright or toxic.

    For tofu: SOUL's comparison of forget and retain rows. For copyright: the text to forget, if it is the
    user's file. For toxic: the prompts of the rows to forget.
    """
    if task == "tofu":
        return ["eval.tofu.metrics.tofu_soul_ks.enabled=true"]
    name = str(given.get("dataset.forget_dataset_name", DEFAULTS["forget"]))
    routed = _routed(name, data_root)
    if routed is None or not (is_local_path(name) or name == "SafePku"):
        return []
    if task == "copyright" and routed.texts:
        return [assign("eval.copyright.hf_path", name)]
    if task == "toxic" and not routed.texts:
        return _toxic(given, name, routed)
    return []


def _routed(name: str, data_root: str) -> Routed | None:
    """The dataset; None if there is none. `data_overrides` reports its faults."""
    try:
        return route(name, "forget", data_root)
    except UserError:
        return None


def _toxic(given: Given, name: str, routed: Routed) -> list[str]:
    view = "eval.toxicity.views.forget"
    overrides = []
    if name != "SafePku":
        split = routed.values.get("args.hf_args.split")
        hf_args: dict[str, Any] = {"path": name, **({} if split is None else {"split": split})}
        key = routed.values.get("args.question_key", "question")
        overrides += [
            assign(f"{view}.hf_args", hf_args),
            f"{view}.reshape=null",
            assign(f"{view}.prompt_key", key),
        ]
    ratio = given.get("dataset.forget_ratio", RATIO)
    # `data_overrides` reports a wrong ratio; 1 means all rows.
    if ratio > 0 and ratio != 1 and (ratio < 1 or float(ratio).is_integer()):
        overrides.append(assign(f"{view}.select", selection(given)))
    return [*overrides, f"{view}.count=null"]
