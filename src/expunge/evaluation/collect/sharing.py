"""Work shared by ranks: each takes every W-th item, and all get everything back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from expunge.lm import runtime

Item = TypeVar("Item")


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """The items of this rank."""
    return items[runtime.rank() :: runtime.world_size()]


def gather(found: Mapping[int, Any]) -> dict[int, Any]:
    """The union of what all ranks found."""
    return {key: value for part in runtime.gathered(dict(found)) for key, value in part.items()}
