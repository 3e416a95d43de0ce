"""What a `module:function` takes, read from its source by AST: nothing is imported, so nothing heavy is loaded and nothing runs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from expunge.core.errors import UserError, unknown


class Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Code:
    """A default that is an expression and not a literal, as its source text."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Signature:
    """A function or class as its source tells it.

    Attributes:
        handler: `module:function`.
        positional: names of the positional parameters (`self` left out): a loss's needs.
        positional_defaults: the defaults of those that have one.
        keyword: the keyword-only parameters with their defaults; `REQUIRED` where there is none.
        open: whether it takes `**anything`.
        summary: the first line of its docstring.
        decorators: keyword arguments of its decorators, by the decorator's name.
        path: the source file.
    """

    handler: str
    positional: tuple[str, ...]
    keyword: Mapping[str, Any]
    open: bool
    summary: str
    path: Path
    positional_defaults: Mapping[str, Any] = field(default_factory=dict)
    decorators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.handler.rpartition(":")[2]


def read_signature(handler: str) -> Signature:
    """Read the signature of `module:function` (or `module:Class`: that of its `__init__`).

    Args:
        handler: the dotted module, a colon, the name in it.

    Raises:
        UserError: the handler is not of that form, the module is nowhere, or has no such name.
    """
    module, colon, name = handler.partition(":")
    if not colon or not module or not name.isidentifier():
        raise UserError(
            f"{handler!r} is not of the form module:function", "for example my_package.my_method:my_loss"
        )
    path = module_file(module)
    if path is None:
        raise UserError(
            f"{handler}: there is no module {module!r}",
            "install it, put its folder on PYTHONPATH, or beside the --config-dir",
        )
    tree = _parse(path, path.stat().st_mtime_ns)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return _signature(handler, node, path)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = _absolute(node, module, path)
                    return read_signature(f"{source}:{alias.name}")
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    raise UserError.of([unknown(f"name in {module}", name, names)])


def module_file(module: str) -> Path | None:
    """The source file of a dotted module. Only the top-level name goes through the finders, which do not import it."""
    top, *rest = module.split(".")
    bases: list[Path] = []
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        bases += [Path(location) for location in spec.submodule_search_locations]
    elif spec is not None and spec.origin and not rest:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for base in bases:
        target = base.joinpath(*rest)
        for path in (target.with_name(target.name + ".py"), target / "__init__.py"):
            if path.is_file():
                return path
    return None


def read_names(module: str, name: str) -> tuple[str, ...]:
    """The strings of a module's constant: the items of a tuple, other constants of the module unpacked in it included, or a dict's keys.

    Raises:
        UserError: there is no such module or constant.
    """
    path = module_file(module)
    if path is None:
        raise UserError(f"there is no module {module!r}")
    constants: dict[str, ast.expr] = {}
    for node in _parse(path, path.stat().st_mtime_ns).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            constants[node.target.id] = node.value
    if name not in constants:
        raise UserError(f"{module} has no constant {name!r}")
    return tuple(_strings(constants[name], constants))


def make_importable(config_dirs: Sequence[str | Path]) -> None:
    """Append to `sys.path` where the modules that a user's YAML names may lie: its folder, the one around it, the current folder."""
    folders = [
        folder
        for item in config_dirs
        for folder in (Path(item).expanduser().resolve(), Path(item).expanduser().resolve().parent)
    ]
    sys.path.extend(
        str(folder) for folder in dict.fromkeys([*folders, Path.cwd()]) if str(folder) not in sys.path
    )


def dataclass_fields(path: Path, name: str) -> list[str]:
    """The annotated fields of a class, in the order of its source.

    Raises:
        UserError: the file has no such class.
    """
    for node in _parse(path, path.stat().st_mtime_ns).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
    raise UserError(f"{path} has no class {name}")


@lru_cache(maxsize=256)
def _parse(path: Path, _changed: int) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(
            f"{path}, line {error.lineno}: {error.msg}", "this file does not parse as Python"
        ) from error


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The dotted name of the module an import statement of `module` reads from."""
    if node.level == 0:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], node.module or ""])


def _signature(
    handler: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, path: Path
) -> Signature:
    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
    decorators = {_called(item): _keywords(item) for item in node.decorator_list}
    if isinstance(node, ast.ClassDef):
        init = next(
            (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"),
            None,
        )
        if init is None:
            return Signature(handler, (), _fields(node), False, summary, path, {}, decorators)
        arguments, skip = init.args, 1
    else:
        arguments, skip = node.args, 0
    positional = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    defaults = {name: _value(default) for name, default in zip(with_default, arguments.defaults, strict=True)}
    keyword = {
        item.arg: REQUIRED if default is None else _value(default)
        for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    return Signature(
        handler,
        tuple(positional[skip:]),
        keyword,
        arguments.kwarg is not None,
        summary,
        path,
        defaults,
        decorators,
    )


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    """The fields of a class without `__init__` (a dataclass), as keyword parameters."""
    items = [
        item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    return {
        item.target.id: REQUIRED if item.value is None else _value(item.value)
        for item in items
        if isinstance(item.target, ast.Name)
    }


def _strings(node: ast.expr | None, constants: Mapping[str, ast.expr]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Starred):
        yield from _strings(node.value, constants)
    elif isinstance(node, ast.Name) and node.id in constants:
        yield from _strings(constants[node.id], constants)
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from _strings(item, constants)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            yield from _strings(key, constants)


def _called(node: ast.expr) -> str:
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)


def _keywords(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call):
        return {}
    return {item.arg: _value(item.value) for item in node.keywords if item.arg is not None}


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Code(ast.unparse(node))
