"""The adapter of a run, as given in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.binding import Binder, Bound
from expunge.core.handlers import read_signature

KEY = "model.adapter"
"""The key of the bound adapter."""
FIELDS = "expunge.models.adapter_args:AdapterArgs"
ADAPTER_FILE = "adapter_config.json"


def bind_adapter(binder: Binder, section: Mapping[str, Any]) -> Bound | None:
    """Bind `model.adapter`; a null value counts as not given. None if there is a fault, which is recorded."""
    given = {name: value for name, value in section.items() if value is not None}
    path = Path(str(given.get("path", "."))).expanduser()
    if "path" in given and not (path / ADAPTER_FILE).is_file():
        hint = f"looked for {ADAPTER_FILE} in {path.absolute()}"
        binder.refuse(f"{KEY}.path", given["path"], f"{path} is not an adapter folder", hint)
    return binder.bind(KEY, read_signature(FIELDS), given)
