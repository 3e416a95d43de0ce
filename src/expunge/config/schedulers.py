"""The keyword arguments of a learning rate schedule, read from the source of transformers."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from expunge.core.binding import Binder
from expunge.core.errors import UserError
from expunge.core.handlers import REQUIRED, Signature, literal, read_signature
from expunge.core.source import definition

EVALUATED = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow a metric."""
WITHOUT = ("constant", "constant_with_warmup")
"""Schedules to which `get_scheduler` passes no keyword arguments."""
OPEN = {
    "reduce_lr_on_plateau": "torch.optim.lr_scheduler:ReduceLROnPlateau",
    "greedy": "transformers.optimization:GreedyLR",
}
"""The class that takes the keyword arguments, where the function takes any."""
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
"""Parameters that the training gives."""
CURVES = ("linear", "cosine", "1-sqrt")


def check_scheduler(binder: Binder, key: str, args: Mapping[str, Any]) -> None:
    """Check `lr_scheduler_kwargs` against the signature of the schedule that `lr_scheduler_type` names."""
    kind, where = args.get("lr_scheduler_type", "linear"), f"{key}.lr_scheduler_kwargs"
    given, signature = _mapping(args.get("lr_scheduler_kwargs")), _signature(str(kind))
    if signature is None or given is None:
        return
    before = len(binder.faults)
    binder.bind(where, signature, given)
    binder.bound.pop(where, None)
    if len(binder.faults) > before:
        return
    for name in ("warmup_type", "decay_type"):
        if name in signature.keyword and given.get(name, "linear") not in CURVES:
            text = binder.typed(f"{where}.{name}", given[name])
            binder.fault(f"{text}: must be one of {', '.join(map(repr, CURVES))}", "choose one of them")
    floors = [name for name in ("min_lr", "min_lr_rate") if given.get(name) is not None]
    if kind not in OPEN and "min_lr_rate" in signature.keyword and len(floors) != 1:
        reason = "both are given" if floors else "none is given"
        text = f"{binder.typed(f'{key}.lr_scheduler_type', kind)} needs min_lr or min_lr_rate, and {reason}"
        binder.fault(text, f"for example {where}.min_lr_rate=0.1")


@cache
def _signature(kind: str) -> Signature | None:
    """The keyword arguments of a schedule; None if there is no such schedule in the installed version."""
    function = OPEN.get(kind) or _functions().get(kind)
    try:
        found = read_signature(function) if function else None
    except UserError:
        return None
    if found is None:
        return None
    defaults = {name: found.positional_defaults.get(name, REQUIRED) for name in found.positional}
    own = {**defaults, **found.keyword} if kind not in WITHOUT else {}
    keyword = {name: default for name, default in own.items() if name not in GIVEN}
    return replace(found, positional=(), keyword=keyword)


def _functions() -> dict[str, str]:
    """The function of each schedule, as `module:function`."""
    table = definition("transformers.optimization", "TYPE_TO_SCHEDULER_FUNCTION")
    names = definition("transformers.trainer_utils", "SchedulerType")
    if not (table and names and isinstance(table.node, ast.Dict) and isinstance(names.node, ast.ClassDef)):
        return {}
    values = {
        item.targets[0].id: str(literal(item.value))
        for item in names.node.body
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name)
    }
    pairs = zip(table.node.keys, table.node.values, strict=True)
    return {
        values[name.attr]: f"{table.module}:{function.id}"
        for name, function in pairs
        if isinstance(name, ast.Attribute) and isinstance(function, ast.Name) and name.attr in values
    }


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """The keyword arguments as a mapping; None if they are of another type, which is reported elsewhere."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return {} if value is None else value if isinstance(value, Mapping) else None
