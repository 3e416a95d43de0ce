"""Read annotations from source, and check values against them. Nothing is imported."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from expunge.core.handlers import Code, Signature, literal
from expunge.core.source import meant, origin

SCALARS = ("int", "float", "bool", "str", "None")
SEQUENCES = ("Sequence", "list", "List", "tuple", "Tuple")
MAPPINGS = ("Mapping", "dict", "Dict", "MutableMapping")
RANGES: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "Above": ("above {:g}", lambda value, bound: value > bound),
    "AtLeast": ("of at least {:g}", lambda value, bound: value >= bound),
    "Below": ("below {:g}", lambda value, bound: value < bound),
    "AtMost": ("at most {:g}", lambda value, bound: value <= bound),
}
"""The classes of `core.ranges`: the words for a message, and the test of a value."""
PLAIN: Mapping[str, tuple[type, str]] = {
    "None": (type(None), "null"),
    "bool": (bool, "true or false"),
    "str": (str, "a string"),
    "mapping": (Mapping, "a section of keys and values"),
}
"""Kinds of types whose values need only be instances of a class: this class, and the words for a message."""


@dataclass(frozen=True)
class Type:
    """The type that a value must have.

    Attributes:
        kind: int, float, bool, str, None, literal, union, list, tuple, mapping; `module:Class` for any other
            class; "any" if the annotation cannot be read.
        args: the choices of a literal, the members of a union, the item types of a tuple, or the one item
            type of a list.
        ranges: names of `RANGES` with their bounds.
    """

    kind: str = "any"
    args: tuple[Any, ...] = ()
    ranges: tuple[tuple[str, float], ...] = ()

    def choices(self) -> tuple[Any, ...]:
        """The values of its literals and enumerations; empty if it has none."""
        if self.kind == "literal":
            return self.args
        if self.kind == "union":
            return tuple(choice for item in self.args for choice in item.choices())
        return ()

    def with_range(self, name: str, bound: float) -> Type:
        """The same type with a range. In a union, the range applies to the members that are numbers."""
        if self.kind == "union":
            return replace(self, args=tuple(item.with_range(name, bound) for item in self.args))
        if self.kind not in ("int", "float"):
            return self
        return replace(self, ranges=(*self.ranges, (name, bound)))


ANY = Type()


def type_of(signature: Signature, name: str) -> Type:
    """The type of a parameter, with the ranges from its decorators (`positive`, `at_least_0`)."""
    hint = signature.annotations.get(name)
    found = ANY if hint is None else read_type(hint, signature.module)
    for decorator in signature.decorators.values():
        if name in (decorator.get("positive") or ()):
            found = found.with_range("Above", 0)
        if name in (decorator.get("at_least_0") or ()):
            found = found.with_range("AtLeast", 0)
    return found


def read_type(node: ast.expr, module: str) -> Type:
    """The type of an annotation in a module's source; names are followed to their definition."""
    if isinstance(node, ast.Constant) and node.value is None:
        return Type("None")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return read_type(ast.parse(node.value, mode="eval").body, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([read_type(node.left, module), read_type(node.right, module)])
    if isinstance(node, ast.Subscript):
        return _subscript(node, module)
    return _named(node, module)


def _named(node: ast.expr, module: str) -> Type:
    if isinstance(node, ast.Name) and node.id in SCALARS:
        return Type(node.id)
    dotted = origin(node, module)
    last = dotted.rpartition(".")[2]
    if dotted in (*SEQUENCES, *MAPPINGS) or dotted.startswith(("typing.", "collections.abc.")):
        return Type("list", (ANY,)) if last in SEQUENCES else Type("mapping") if last in MAPPINGS else ANY
    found = meant(node, module)
    if found is None:
        return ANY
    if isinstance(found.node, ast.ClassDef):
        values = _enumerated(found.node)
        return Type("literal", values) if values else Type(found.handler)
    return read_type(found.node, found.module) if isinstance(found.node, ast.expr) else ANY


def _subscript(node: ast.Subscript, module: str) -> Type:
    outer = origin(node.value, module).rpartition(".")[2]
    items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        return Type("literal", tuple(literal(item) for item in items))
    if outer == "Annotated":
        return _ranged(read_type(items[0], module), items[1:])
    if outer in ("Optional", "Union"):
        members = [read_type(item, module) for item in items]
        return _union(members + ([Type("None")] if outer == "Optional" else []))
    if outer in ("tuple", "Tuple") and not (isinstance(items[-1], ast.Constant) and items[-1].value is ...):
        return Type("tuple", tuple(read_type(item, module) for item in items))
    if outer in SEQUENCES:
        return Type("list", (read_type(items[0], module),))
    return Type("mapping") if outer in MAPPINGS else ANY


def _ranged(inner: Type, marks: list[ast.expr]) -> Type:
    for mark in marks:
        if isinstance(mark, ast.Call) and mark.args:
            name = ast.unparse(mark.func).rpartition(".")[2]
            bound = literal(mark.args[0])
            if name in RANGES and not isinstance(bound, Code):
                inner = inner.with_range(name, bound)
    return inner


def _union(members: list[Type]) -> Type:
    flat = [item for member in members for item in (member.args if member.kind == "union" else (member,))]
    return Type("union", tuple(flat))


def _enumerated(node: ast.ClassDef) -> tuple[Any, ...]:
    """The values of an enumeration; empty for any other class."""
    if not any(ast.unparse(base).endswith("Enum") for base in node.bases):
        return ()
    return tuple(literal(item.value) for item in node.body if isinstance(item, ast.Assign))


def wrong(value: Any, hint: Type) -> str:
    """What the value must be, in words; empty if the value is valid or the type is unknown."""
    if hint.kind == "union":
        complaints = [wrong(value, member) for member in hint.args]
        return "" if "" in complaints else " or ".join(dict.fromkeys(complaints))
    if hint.kind == "literal":
        same = [choice for choice in hint.args if choice == value and type(choice) is type(value)]
        return "" if same else ("one of " if len(hint.args) > 1 else "") + ", ".join(map(repr, hint.args))
    if hint.kind in ("int", "float"):
        return _wrong_number(value, hint)
    if hint.kind in ("list", "tuple"):
        return _wrong_items(value, hint)
    kind, text = PLAIN.get(hint.kind, (object, ""))
    return "" if isinstance(value, kind) else text


def _wrong_number(value: Any, hint: Type) -> str:
    whole = hint.kind == "int"
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    finite = not isinstance(value, float) or math.isfinite(value)
    if good and finite and all(RANGES[name][1](value, bound) for name, bound in hint.ranges):
        return ""
    noun = "a whole number" if whole else "a number" if finite else "a finite number"
    limits = " and ".join(RANGES[name][0].format(bound) for name, bound in hint.ranges)
    return f"{noun} {limits}".strip()


def _wrong_items(value: Any, hint: Type) -> str:
    count = len(hint.args) if hint.kind == "tuple" else None
    fits = isinstance(value, list | tuple) and (len(value) == count if count is not None else bool(value))
    hints = hint.args if count is not None else hint.args * (len(value) if fits else 1)
    complaints = [wrong(item, kind) for item, kind in zip(value, hints, strict=True)] if fits else []
    if fits and not any(complaints):
        return ""
    of = "strings" if hint.args[0].kind == "str" else ""
    each = next(filter(None, complaints), "") or ("" if of else wrong(None, hint.args[0]))
    size = f"a list of {count} items" if count is not None else f"a list of {of}" if of else "a list"
    return f"{size}, each {each}" if each and not of else size


def converted(value: Any, hint: Type) -> Any:
    """The value as the function takes it: a list becomes a tuple if the type is a tuple."""
    return tuple(value) if hint.kind == "tuple" and isinstance(value, list) else value
