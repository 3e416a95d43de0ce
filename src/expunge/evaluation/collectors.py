"""The table of collectors, and those that a suite brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.errors import UserError
from expunge.evaluation.collect.choices import Choices
from expunge.evaluation.collect.collector import Collector
from expunge.evaluation.collect.generations import Generations
from expunge.evaluation.collect.gradnorms import GradientNorms
from expunge.evaluation.collect.harness import Harness
from expunge.evaluation.collect.tokens import Tokens
from expunge.evaluation.handlers import load_named
from expunge.evaluation.tables import Table

COLLECTORS: tuple[Collector, ...] = (Tokens(), Generations(), GradientNorms(), Choices(), Harness())


def collectors_of(suite: Mapping[str, Any]) -> dict[type[Table], Collector]:
    """The collectors that a suite may use, by the type of their tables.

    Args:
        suite: the suite's section; `collectors` lists further ones as `module:Name`.

    Raises:
        UserError: one that cannot be imported, is no collector, or takes the name or the table of another.
    """
    found = {collector.table: collector for collector in COLLECTORS}
    for handler in suite.get("collectors") or ():
        named = load_named(str(handler), "collector")
        made: Collector = named() if isinstance(named, type) else named
        lacking = [name for name in ("kind", "table", "collect") if not hasattr(made, name)]
        if lacking:
            raise UserError(
                f"collectors: {handler} has no {' and no '.join(lacking)}",
                "write a subclass of expunge.evaluation.collect.collector.Collector",
            )
        if made.table in found or made.kind in [other.kind for other in found.values()]:
            raise UserError(
                f"collectors: {handler} has the kind {made.kind!r} or the table of another collector",
                f"known kinds: {', '.join(other.kind for other in found.values())}; choose another",
            )
        found[made.table] = made
    return found
