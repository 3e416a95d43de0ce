"""The datasets of a run, as given in the configuration: `data.SIDE.NAME = {handler, args}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.config.short_names import DATASETS
from expunge.core.binding import Binder, Bound


def bind_dataset(binder: Binder, key: str, node: Any) -> Bound | None:
    """Bind a dataset and store it in the binder's `bound` at `KEY.args`.

    Args:
        binder: receives the faults and the bound function.
        key: the key of the dataset, such as `data.forget.TOFU_QA_forget`.
        node: its handler (`module:function`, or a name in `DATASETS`) and its args.

    Returns:
        The bound function; None if there is a fault, which is recorded.
    """
    if not isinstance(node, Mapping):
        binder.refuse(key, node, "a dataset is a section with a handler", f"write {key}.handler=HANDLER")
        return None
    signature = binder.find(f"{key}.handler", node.get("handler"), DATASETS, "data handler", places=1)
    if signature is None:
        return None
    args = node.get("args") or {}
    if not isinstance(args, Mapping):
        hint = f"write {key}.args.NAME=VALUE"
        binder.refuse(f"{key}.args", args, "this is a section, not a value", hint)
        return None
    # The first positional parameter is the context; the run passes it.
    return binder.bind(f"{key}.args", signature, args)
