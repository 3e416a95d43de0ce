"""The data sets of a run as the configuration states them: `data.SIDE.NAME = {handler, args}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.config.short_names import DATASETS
from expunge.core.binding import Binder, Bound


def bind_dataset(binder: Binder, key: str, node: Any) -> Bound | None:
    """Bind a data set; it is at `KEY.args` of the binder's `bound`.

    Args:
        binder: takes the faults, and what was bound.
        key: of the data set, such as `data.forget.TOFU_QA_forget`.
        node: its handler (`module:function`, or a name of `DATASETS`) and its args.

    Returns:
        What was bound; None, with faults noted, where something is wrong.
    """
    if not isinstance(node, Mapping):
        binder.fault(
            f"{binder.typed(key, node)}: a data set is a section with a handler",
            f"write {key}.handler=HANDLER",
        )
        return None
    signature = binder.find(f"{key}.handler", node.get("handler"), DATASETS, "data handler", places=1)
    if signature is None:
        return None
    args = node.get("args") or {}
    if not isinstance(args, Mapping):
        binder.fault(
            f"{binder.typed(f'{key}.args', args)}: this is a section", f"write {key}.args.NAME=VALUE"
        )
        return None
    # The first positional parameter is the context, which the run gives.
    return binder.bind(f"{key}.args", signature, args)
