"""Modules as source: where a name is defined, through re-exports and second names. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from expunge.core.errors import UserError

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """Where a name is defined.

    Attributes:
        module: the dotted module.
        path: its source file.
        name: in that module.
        node: a function, a class, or the expression that the name is assigned.
    """

    module: str
    path: Path
    name: str
    node: Function | ast.ClassDef | ast.expr

    @property
    def handler(self) -> str:
        """`module:name`."""
        return f"{self.module}:{self.name}"


def definition(module: str, name: str) -> Definition | None:
    """Where a name of a module is defined, through re-exports and second names; None where that cannot be found."""
    path = module_file(module)
    if path is None:
        return None
    found: Definition | None = None
    for node in statements_of(path):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            found = Definition(module, path, name, node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    found = definition(_absolute(node, module, path), alias.name)
        elif (value := _assigned(node, name)) is not None:
            same = isinstance(value, ast.Name) and value.id != name
            found = (definition(module, value.id) if same and isinstance(value, ast.Name) else None) or (
                Definition(module, path, name, value)
            )
    return found


def attribute(owner: Definition, name: str) -> Definition | None:
    """Where a class, or the nearest of its bases, defines an attribute or method; None where none does.

    A second name, such as `table = MyTable`, is followed to the definition that it stands for.
    """
    if not isinstance(owner.node, ast.ClassDef):
        return None
    for node in owner.node.body:
        if isinstance(node, Function) and node.name == name:
            return Definition(owner.module, owner.path, name, node)
        if (value := _assigned(node, name)) is not None:
            return _meant(value, owner.module) or Definition(owner.module, owner.path, name, value)
    bases = (_meant(base, owner.module) for base in owner.node.bases)
    return next((found for base in bases if base and (found := attribute(base, name))), None)


def imported_as(module: str, name: str) -> str:
    """The dotted origin of a name of a module, such as `typing.Literal`; the name itself where no import brings it."""
    path = module_file(module)
    for node in statements_of(path) if path is not None else ():
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = (
                        _absolute(node, module, path) if isinstance(node, ast.ImportFrom) and path else ""
                    )
                    return f"{origin}.{alias.name}" if origin else alias.name
    return name


def module_file(module: str) -> Path | None:
    """The source file of a dotted module. Only the top-level name goes through the finders, which do not import it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded) if loaded.endswith(".py") else None
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        own = spec.origin if not rest else None
        return Path(own) if own and own.endswith(".py") else None
    for base in spec.submodule_search_locations:
        target = Path(base).joinpath(*rest)
        for path in (target.with_name(target.name + ".py"), target / "__init__.py"):
            if path.is_file():
                return path
    return None


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


@lru_cache(maxsize=256)
def _parsed(path: Path, _changed: int) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(
            f"{path}, line {error.lineno}: {error.msg}", "this file does not parse as Python"
        ) from error


def statements_of(path: Path) -> Iterator[ast.stmt]:
    """The statements of a source file, those under `if` and `try` included.

    Raises:
        UserError: the file does not parse.
    """
    return _statements(_parsed(path, path.stat().st_mtime_ns).body)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


def _meant(node: ast.expr, module: str) -> Definition | None:
    """The definition that a name, or the name of an imported module's attribute, stands for; None for other expressions."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return definition(imported_as(module, node.value.id), node.attr)
    return definition(module, node.id) if isinstance(node, ast.Name) else None


def _assigned(node: ast.stmt, name: str) -> ast.expr | None:
    """What a statement assigns to a name; None where it assigns nothing to it."""
    if isinstance(node, ast.Assign):
        targets = [target for target in node.targets if isinstance(target, ast.Name)]
        return node.value if any(target.id == name for target in targets) else None
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.value if node.target.id == name else None
    return None


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The dotted name of the module an import statement of `module` reads from."""
    if node.level == 0:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
