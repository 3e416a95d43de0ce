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
Named = Function | ast.ClassDef | ast.expr
"""What a name can stand for; an expression is what is assigned to it."""


@dataclass(frozen=True)
class Definition:
    """Where a name is defined."""

    module: str
    path: Path
    name: str
    node: Named

    @property
    def handler(self) -> str:
        """`module:name`."""
        return f"{self.module}:{self.name}"


def definition(module: str, name: str) -> Definition | None:
    """Find where a module's name is defined; re-exports and aliases are followed. None if it is not found."""
    path = module_file(module)
    found = None if path is None else names_of(module, path).get(name)
    if path is None or found is None:
        return None
    if isinstance(found, str):
        home, _, own = found.rpartition(".")
        return definition(home, own)
    same = isinstance(found, ast.Name) and found.id != name
    return (meant(found, module) if same else None) or Definition(module, path, name, found)


def ancestors(owner: Definition) -> Iterator[Definition]:
    """A class and its bases, as far as their source is found, nearest first."""
    yield owner
    for base in owner.node.bases if isinstance(owner.node, ast.ClassDef) else ():
        if found := meant(base, owner.module):
            yield from ancestors(found)


def attribute(owner: Definition, name: str) -> Definition | None:
    """Where a class, or the nearest of its bases, defines an attribute or method; None where none does.

    A second name, such as `table = MyTable`, is followed to the definition that it stands for.
    """
    for home in ancestors(owner):
        found = _names(home.node.body, "").get(name) if isinstance(home.node, ast.ClassDef) else None
        if isinstance(found, Named):
            return meant(found, home.module) or Definition(home.module, home.path, name, found)
    return None


def meant(node: ast.AST, module: str) -> Definition | None:
    """The definition that a name, or a name with attributes, refers to; None for other expressions."""
    home, _, name = origin(node, module).rpartition(".")
    return definition(home or module, name)


def origin(node: ast.AST, module: str) -> str:
    """The dotted origin of a name or attribute, such as `typing.Literal`; its own name if not imported."""
    if isinstance(node, ast.Attribute):
        base = origin(node.value, module)
        return f"{base}.{node.attr}" if base else ""
    path = module_file(module)
    if not isinstance(node, ast.Name) or path is None:
        return node.id if isinstance(node, ast.Name) else ""
    found = names_of(module, path).get(node.id)
    return found if isinstance(found, str) else node.id


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
    dirs = [Path(item).expanduser().resolve() for item in config_dirs]
    folders = [folder for item in dirs for folder in (item, item.parent)]
    sys.path.extend(
        str(folder) for folder in dict.fromkeys([*folders, Path.cwd()]) if str(folder) not in sys.path
    )


def names_of(module: str, path: Path) -> dict[str, Named | str]:
    """The names that a module's source binds, also under `if` and `try`; an import has its dotted origin.

    Raises:
        UserError: the file does not parse.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _names_of(path, package, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _names_of(path: Path, package: str, _changed: int) -> dict[str, Named | str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(
            f"{path}, line {error.lineno}: {error.msg}", "correct the file: it is not valid Python"
        ) from error
    return _names(tree.body, package)


def _names(body: Sequence[ast.stmt], package: str) -> dict[str, Named | str]:
    found: dict[str, Named | str] = {}
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            home = _home(node, package) if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found[alias.asname or alias.name] = f"{home}.{alias.name}" if home else alias.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            found |= _names([*node.body, *node.orelse], package)
    return found


def _home(node: ast.ImportFrom, package: str) -> str:
    """The dotted name of the module that an import statement in a package reads."""
    parts = package.split(".")[: -(node.level - 1) or None] if node.level else []
    return ".".join([*parts, *([node.module] if node.module else [])])
