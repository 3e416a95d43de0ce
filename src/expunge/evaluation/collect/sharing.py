"""Work shared by ranks: each takes every W-th item, and all get everything back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from expunge.lm import runtime

Item = TypeVar("Item")


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this rank."""
    return items[runtime.rank() :: runtime.world_size()]


def gather(found: Mapping[int, Any]) -> dict[int, Any]:
    """The union of what all ranks found."""
    size = runtime.world_size()
    if size == 1:
        return dict(found)
    everyone: list[Any] = [None] * size
    torch.distributed.all_gather_object(everyone, dict(found))
    return {key: value for part in everyone for key, value in part.items()}


def from_first(value: Item) -> Item:
    """The value of rank 0, on every rank."""
    if runtime.world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
