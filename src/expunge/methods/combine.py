"""How the gradients of a method's own terms and of the retain term are put together, where they are not simply added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class Combination(Protocol):
    """Puts the gradients of one optimizer step together; may keep a state."""

    def __call__(self, own: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to take, a tensor a parameter, of those of the own terms and of the retain term, each of the whole step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
