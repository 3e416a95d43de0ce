"""Find where a name is defined in source; re-exports and aliases are followed. Nothing is imported."""

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
        name: the name in this module.
        node: a function, a class, or the expression assigned to the name.
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
    """Find where a module's name is defined; re-exports and aliases are followed. None if it is not found."""
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


def ancestors(owner: Definition) -> Iterator[Definition]:
    """A class and its bases, as far as their source is found, nearest first."""
    yield owner
    for base in owner.node.bases if isinstance(owner.node, ast.ClassDef) else ():
        if found := _meant(base, owner.module):
            yield from ancestors(found)


def imported_as(module: str, name: str) -> str:
    """The dotted origin of a module's name, such as `typing.Literal`; the name itself if not imported."""
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
    """The source file of a dotted module. Python searches only the top-level name, without an import."""
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
    """Append the folders of a user's modules to `sys.path`: each `--config-dir`, its parent, the current one.

    They are appended, so that installed packages are found first.
    """
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
            f"{path}, line {error.lineno}: {error.msg}", "correct the file: it is not valid Python"
        ) from error


def statements_of(path: Path) -> Iterator[ast.stmt]:
    """The statements of a source file, including those under `if` and `try`.

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
    """The definition that a name or a module's attribute refers to; None for other expressions."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return definition(imported_as(module, node.value.id), node.attr)
    return definition(module, node.id) if isinstance(node, ast.Name) else None


def _assigned(node: ast.stmt, name: str) -> ast.expr | None:
    """The expression that a statement assigns to a name; None if it assigns nothing to it."""
    if isinstance(node, ast.Assign):
        targets = [target for target in node.targets if isinstance(target, ast.Name)]
        return node.value if any(target.id == name for target in targets) else None
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.value if node.target.id == name else None
    return None


def _absolute(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The dotted name of the module that an import statement of `module` reads."""
    if node.level == 0:
        return node.module or ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
