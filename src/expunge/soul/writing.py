"""Write values as overrides in hydra's grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

PLAIN = re.compile(r"(?:\.{0,2}/|[A-Za-z_])[\w./+\-]*")
WORDS = ("null", "true", "false", "nan", "inf")


def written(value: Any) -> str:
    """A value as the right side of an override; texts that hydra could misread are quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(written(item) for item in value) + "]"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    return '"' + text.replace('"', '\\"') + '"'


def assign(key: str, value: Any) -> str:
    """`key=value`."""
    return f"{key}={written(value)}"


def replaced(ours: Iterable[str], typed: Iterable[str]) -> tuple[str, ...]:
    """Our overrides without those whose key the user gave, followed by the user's."""
    given = tuple(typed)
    keys = {key_of(text) for text in given}
    return (*(text for text in ours if key_of(text) not in keys), *given)


def key_of(text: str) -> str:
    """The key of an override."""
    return text.lstrip("+~").partition("=")[0]
