"""Shared by the checks: the list of faults, and the names of keys in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.annotations import Type
from expunge.core.binding import Binder
from expunge.core.config import Config
from expunge.core.engine import DDP, Engine
from expunge.core.errors import did_you_mean
from expunge.core.handlers import REQUIRED


class Checking(Binder):
    """One validation: a binder that knows the configuration.

    Args:
        cfg: the configuration to check.
        broken: groups whose choice does not exist; what depends on them is not checked.

    Attributes:
        engine: how several processes share the run.
    """

    engine: Engine = DDP

    def __init__(self, cfg: Config, broken: set[str] | None = None) -> None:
        super().__init__()
        self.cfg, self.broken = cfg, broken or set()

    def typed(self, key: str, value: Any = REQUIRED) -> str:
        """The typed override of `key`, else `key=value` with the value from the YAML."""
        for text in reversed(self.cfg.overrides):
            if text.lstrip("+").partition("=")[0] == key:
                return text
        return super().typed(key, value)

    def known(self, key: str, names: Mapping[str, Any], choices: Sequence[str], what: str) -> None:
        """Check that every name at `key` is one of `choices`."""
        for name, value in names.items():
            if name not in choices:
                hint = did_you_mean(name, choices, count=3) or f"known: {', '.join(sorted(choices))}"
                self.refuse(f"{key}.{name}", value, f"{what} has no {name!r}", hint)

    def number(
        self, key: str, *, above: float | None = None, at_least: float | None = None, whole: bool = False
    ) -> None:
        """Check that the value at `key`, if given, is a number in range."""
        value = self.cfg.get(key)
        if value is None:
            return
        if whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        limits = (("Above", above), ("AtLeast", at_least))
        ranges = tuple((name, bound) for name, bound in limits if bound is not None)
        number = "1e-5" if key.endswith("learning_rate") else f"{1 if at_least is None else at_least:g}"
        hint = f"for example {key}={4 if whole else number}"
        self.check(key, value, Type("int" if whole else "float", ranges=ranges), hint)

    def side_is_there(self, side: str, reader: str) -> None:
        """Check that a side of the data has a dataset, because `reader` reads it."""
        if not self.cfg.section(f"data.{side}"):
            self.fault(
                f"data.{side} is empty, and {reader} reads it",
                f"choose a dataset: data/datasets@data.{side}=NAME",
            )
