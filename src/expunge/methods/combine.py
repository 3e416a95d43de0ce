"""How the gradients of a method's own terms and of the retain term are put together, where they are not simply added."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor

from expunge.core.errors import Fault, UserError, unknown
from expunge.methods.base import REQUIRED
from expunge.methods.binding import bind_keywords, import_module

COMBINATIONS = {"gru": "expunge.methods.gru:GRU"}
"""Short names of the combinations."""


class Combination(Protocol):
    """Puts the gradients of one optimizer step together; may keep a state."""

    def __call__(self, own: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """The gradient to take, a tensor a parameter, of those of the own terms and of the retain term, each of the whole step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def build_combination(choice: Any, has_retain: bool, faults: list[Fault]) -> Combination | None:
    """The combination of a configuration.

    Args:
        choice: null or "sum", a short name, "module:Class", or {handler, ...keyword arguments}.
        has_retain: whether there is a retain term.
        faults: what is wrong is appended here.

    Returns:
        The combination; None where gradients are added.
    """
    given: dict[str, Any] = {}
    if isinstance(choice, Mapping):
        given = {str(key): value for key, value in choice.items() if key != "handler"}
        choice = choice.get("handler")
    if choice is None or choice in ("none", "sum"):
        return None
    handler = COMBINATIONS.get(str(choice), str(choice))
    if ":" not in handler:
        faults.append(unknown("combination of gradients", handler, (*COMBINATIONS, "sum")))
        return None
    if not has_retain:
        faults.append(
            Fault(
                f"combine={choice} holds a gradient against the retain term's, and there is none",
                "choose retain=nll",
            )
        )
    module, name = import_module(handler)
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise UserError(
            f"{handler} is no class of {module.__name__}",
            "name a class with __call__, state_dict and load_state_dict",
        )
    parameters = inspect.signature(found).parameters.values()
    hyper = {
        item.name: REQUIRED if item.default is item.empty else item.default
        for item in parameters
        if item.kind is item.KEYWORD_ONLY
    }
    before = len(faults)
    bound = bind_keywords(found.__init__, name, given, faults, hyper=hyper)
    return cast(Combination, found(**bound)) if len(faults) == before else None
