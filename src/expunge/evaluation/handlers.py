"""What a configuration names as `module:name`: metrics, collectors, scorers."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from expunge.core.errors import UserError, unknown


def load_named(handler: str, what: str) -> Any:
    """Import `module:name`, something that can be called or made.

    Args:
        handler: as it is written.
        what: it is, for messages: function, collector.

    Raises:
        UserError: no such module, or no such name in it.
    """
    module_name, _, name = handler.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{handler}: there is no module {error.name!r}", "a handler is written as module:function"
        ) from error
    found = getattr(module, name, None)
    if found is None or not (callable(found) or hasattr(found, "collect")):
        suits = inspect.isfunction if what == "function" else inspect.isclass
        names = [key for key, value in vars(module).items() if suits(value) and not key.startswith("_")]
        raise UserError.of([unknown(f"{what} in {module_name}", name, names)])
    return found
