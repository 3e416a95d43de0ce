"""`module:function`: its signature is read from the source; it is imported only when it is called.

The source is read as an AST; re-exports are followed. Reading imports nothing: it is fast, and no code runs.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError, unknown
from expunge.core.source import (
    Definition,
    Function,
    attribute,
    definition,
    imported_as,
    module_file,
    statements_of,
)


class Required:
    """Marks a parameter without a default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Code:
    """The source text of a default that is an expression, not a literal."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Signature:
    """The signature of a function or class, read from its source.

    Attributes:
        handler: `module:function`, where it is defined.
        positional: names of the positional parameters without `self`; for a loss, its needs.
        keyword: the keyword-only parameters with their defaults; `REQUIRED` if there is no default.
        open: whether it takes `**anything`.
        summary: the first line of its docstring.
        path: the source file.
        positional_defaults: the defaults of the positional parameters that have one.
        decorators: keyword arguments of its decorators, by the decorator's name.
        annotations: the annotations of the parameters, as source.
    """

    handler: str
    positional: tuple[str, ...]
    keyword: Mapping[str, Any]
    open: bool
    summary: str
    path: Path
    positional_defaults: Mapping[str, Any] = field(default_factory=dict)
    decorators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    annotations: Mapping[str, ast.expr] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.handler.rpartition(":")[2]

    @property
    def module(self) -> str:
        """The dotted module."""
        return self.handler.partition(":")[0]


def read_signature(handler: str) -> Signature:
    """Read the signature of `module:function`, or of `module:Class` (its `__init__`, else its fields).

    Args:
        handler: the dotted module, a colon, and a name in this module.

    Raises:
        UserError: the handler has another form, there is no such module or name, or it is not a function.
    """
    module, name = split_handler(handler)
    path = module_file(module)
    if path is None:
        raise UserError(
            f"{handler}: there is no module {module!r}",
            "install it, add its folder to PYTHONPATH, or put it beside the --config-dir",
        )
    found = definition(module, name)
    if found is None:
        names = [
            node.name
            for node in statements_of(path)
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
        ]
        raise UserError.of([unknown(f"name in {module}", name, names)])
    if isinstance(found.node, ast.expr):
        raise UserError(f"{handler} is not a function or class", "a handler names a function or class")
    return _signature(found, found.node)


def split_handler(handler: str) -> tuple[str, str]:
    """Module and name of `module:function`.

    Raises:
        UserError: the handler has another form.
    """
    module, colon, name = handler.partition(":")
    if not colon or not module or not name.isidentifier():
        raise UserError(
            f"{handler!r} is not of the form module:function", "for example my_package.my_method:my_loss"
        )
    return module, name


def load_handler(handler: str) -> Any:
    """Import `module:function`.

    Raises:
        UserError: there is no such module or name, a module that it imports is missing, or its definitions
            are not valid.
    """
    module_name, name = split_handler(handler)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"{module_name} needs the module {error.name!r}, which is not installed",
                f"pip install {error.name}",
            ) from error
        raise UserError(
            f"{handler}: there is no module {module_name!r}",
            f"{error.name!r} was not found on the Python path",
        ) from error
    except ValueError as error:
        raise UserError(f"{module_name} is not valid: {error}", "see docs/architecture.md") from error
    if not hasattr(module, name):
        raise UserError.of([unknown(f"name in {module_name}", name, [*vars(module)])])
    return getattr(module, name)


def _signature(found: Definition, node: Function | ast.ClassDef) -> Signature:
    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
    decorators = {_called(item, found.module): _keywords(item) for item in node.decorator_list}
    if isinstance(node, ast.ClassDef):
        init = next(
            (item for item in node.body if isinstance(item, Function) and item.name == "__init__"), None
        )
        fields = dataclass_fields(node)
        if init is None and not fields:
            inherited = attribute(found, "__init__")
            init = inherited.node if inherited and isinstance(inherited.node, Function) else None
        if init is None:
            defaults = {name: default for name, (default, _) in fields.items()}
            hints = {name: hint for name, (_, hint) in fields.items()}
            return Signature(found.handler, (), defaults, False, summary, found.path, {}, decorators, hints)
        arguments, skip = init.args, 1
    else:
        arguments, skip = node.args, 0
    positional = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return Signature(
        found.handler,
        tuple(positional[skip:]),
        {
            item.arg: REQUIRED if default is None else literal(default)
            for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        },
        arguments.kwarg is not None,
        summary,
        found.path,
        {name: literal(default) for name, default in zip(with_default, arguments.defaults, strict=True)},
        decorators,
        {item.arg: item.annotation for item in every if item.annotation is not None},
    )


def dataclass_fields(node: ast.ClassDef) -> dict[str, tuple[Any, ast.expr]]:
    """The annotated fields of a class, in source order: (default, annotation) by name."""
    return {
        item.target.id: (REQUIRED if item.value is None else literal(item.value), item.annotation)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def _called(node: ast.expr, module: str) -> str:
    """The original name of a decorator, in the module that defines it."""
    function = node.func if isinstance(node, ast.Call) else node
    if isinstance(function, ast.Attribute):
        return function.attr
    return imported_as(module, ast.unparse(function)).rpartition(".")[2]


def _keywords(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call):
        return {}
    return {item.arg: literal(item.value) for item in node.keywords if item.arg is not None}


def literal(node: ast.expr) -> Any:
    """The value of a literal; the source as `Code` for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Code(ast.unparse(node))
