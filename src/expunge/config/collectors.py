"""The collectors of a suite, as their source states them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.config.short_names import COLLECTORS
from expunge.core.annotations import Type
from expunge.core.binding import Binder, Bound
from expunge.core.handlers import Signature, literal, read_signature, split_handler
from expunge.core.source import Definition, attribute, definition

NAMES = Type("list", (Type("str"),))
SECTION = Type("union", (Type("mapping"), Type("None")))

ADVICE = {
    "do_sample": "leave the key out: metrics score the greedy answer, so that an evaluation can be repeated",
    "classifier_path": "leave the key out: this version runs no classifier there, so `gibberish` is null",
}
"""What to do about keys of the field's files that accept one value only."""


@dataclass(frozen=True)
class Collecting:
    """What the source of a collector states.

    Attributes:
        kind: name of its tables.
        table: `module:Class` of its tables.
        section: the section with its settings, None = it has none.
        settings: of the class whose fields are the keys of the section, None = any keys.
    """

    kind: str
    table: str
    section: str | None
    settings: Signature | None

    def bind_section(self, binder: Binder, key: str, node: Mapping[str, Any]) -> None:
        """Bind the settings that a suite or a metric gives at `KEY.SECTION`."""
        given = node.get(self.section) if self.section else None
        where = f"{key}.{self.section}"
        if given is not None and binder.check(where, given, SECTION) and self.settings is not None:
            binder.bind(where, self.settings, given, advice=ADVICE)


def bind_collectors(binder: Binder, key: str, listed: Any) -> dict[str, Collecting]:
    """Bind the shipped collectors and those that a suite lists, at `KEY.collectors.KIND`.

    Returns:
        The collectors by the `module:Class` of their tables.
    """
    own = listed if listed and binder.check(f"{key}.collectors", listed, NAMES) else ()
    known: dict[str, Collecting] = {}
    for handler in (*COLLECTORS.values(), *own):
        signature = binder.find(f"{key}.collectors", handler, {}, "collector")
        found = definition(*split_handler(signature.handler)) if signature else None
        if signature is None or found is None:
            continue
        where = f"{key}.collectors: {handler}"
        lacking = [name for name in ("kind", "table", "collect") if attribute(found, name) is None]
        if lacking:
            hint = "write a subclass of expunge.evaluation.collect.collector.Collector"
            binder.fault(f"{where} has no {' and no '.join(lacking)} in its source", hint)
            continue
        new, kinds = _stated(found), [other.kind for other in known.values()]
        if new.table in known or new.kind in kinds:
            hint = f"known kinds: {', '.join(kinds)}; choose another"
            binder.fault(f"{where} has the kind {new.kind!r} or the table of another collector", hint)
            continue
        known[new.table] = new
        binder.bound[f"{key}.collectors.{new.kind}"] = Bound(signature)
    return known


def _stated(collector: Definition) -> Collecting:
    stated = {name: attribute(collector, name) for name in ("kind", "table", "section", "settings")}
    kind, section = (
        literal(item.node) if item and isinstance(item.node, ast.expr) else None
        for item in (stated["kind"], stated["section"])
    )
    table, settings = stated["table"], stated["settings"]
    typed = settings is not None and isinstance(settings.node, ast.ClassDef)
    fields = read_signature(settings.handler) if settings and typed else None
    return Collecting(str(kind), table.handler if table else "", section, fields)
