"""Ways other than addition to combine the gradients of a method's own terms and of the retain term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class Combination(Protocol):
    """Combines the gradients of one optimizer step; may keep a state."""

    def __call__(self, own: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """The combined gradient, one tensor per parameter.

        Args:
            own: gradient of the own terms over the whole step, one tensor per parameter.
            retain: gradient of the retain term over the whole step, likewise.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
