"""The listeners of a training, as given in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from expunge.core.binding import Binder
from expunge.core.handlers import REQUIRED, Signature, split_handler
from expunge.core.source import ancestors, definition

LISTENERS = "trainer.listeners"
"""The key of the list; a listener is bound one key below, at its number."""
BASES = ("expunge.training.listeners:Listener", "transformers.trainer_callback:TrainerCallback")


def bind_listeners(binder: Binder, listed: Any) -> None:
    """Bind `trainer.listeners`: a list of `module:Class` or {handler, ...keyword arguments}."""
    if listed is not None and not isinstance(listed, list):
        text = binder.typed(LISTENERS, listed)
        hint = f"write {LISTENERS}=[my_package.my_module:MyListener]"
        binder.fault(f"{text}: must be a list of module:Class", hint)
        return
    for number, node in enumerate(listed or ()):
        given = dict(node) if isinstance(node, Mapping) else {"handler": node}
        if not isinstance(handler := given.pop("handler", None), str):
            text = binder.typed(LISTENERS, listed)
            binder.fault(
                f"{text}: entry {number} names no class", "write module:Class, or {handler: module:Class}"
            )
            continue
        signature = binder.find(LISTENERS, handler, {}, "listener")
        if signature is not None and _is_listener(binder, signature):
            binder.bind(f"{LISTENERS}.{number}", _by_name(signature), given)


def _is_listener(binder: Binder, signature: Signature) -> bool:
    found = definition(*split_handler(signature.handler))
    if found is not None and any(base.handler in BASES for base in ancestors(found)):
        return True
    text = binder.typed(LISTENERS, signature.handler)
    hint = "write a subclass of expunge.training.listeners.Listener or of transformers.TrainerCallback"
    binder.fault(f"{text}: {signature.name} is not a listener", hint)
    return False


def _by_name(signature: Signature) -> Signature:
    """The same signature, with the positional parameters as keywords: a configuration names all of them."""
    defaults = {name: signature.positional_defaults.get(name, REQUIRED) for name in signature.positional}
    return replace(signature, positional=(), keyword={**defaults, **signature.keyword})
