"""The configs folders and the choices in them, read from file names without composing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import expunge
from expunge.core.errors import UserError

# Folders under a configs root that are not groups of choices.
NOT_GROUPS = ("accelerate",)


def configs_dir() -> Path:
    """The absolute folder of the shipped configs: the package's copy (from a wheel), else the checkout's."""
    package = Path(expunge.__file__).resolve().parent
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "unlearn.yaml").is_file():
            return folder
    raise UserError(
        f"the configs folder is neither in {package} nor in {package.parents[1]}",
        "reinstall the package: pip install expunge",
    )


def config_roots(config_dirs: Sequence[str | Path] = ()) -> list[Path]:
    """The absolute configs folders: the shipped one first, then the user's.

    Raises:
        UserError: a user's folder does not exist.
    """
    roots = [configs_dir()]
    for folder in config_dirs:
        path = Path(folder).expanduser().resolve()
        if not path.is_dir():
            raise UserError(f"--config-dir {folder}: no such folder", f"looked for {path}")
        roots.append(path)
    return roots


def is_group(roots: Sequence[Path], name: str) -> bool:
    """Whether `name` (such as `trainer` or `data/datasets`) is a group of choices."""
    return name not in NOT_GROUPS and "." not in name and any((root / name).is_dir() for root in roots)


def group_names(roots: Sequence[Path]) -> list[str]:
    """All groups, including nested ones (`data/datasets`, `model/adapter`).

    Folders inside `experiment` are not groups but parts of the names of choices.
    """
    names = {
        path.name for root in roots for path in root.iterdir() if path.is_dir() and any(path.rglob("*.yaml"))
    }
    nested = {
        f"{name}/{path.name}"
        for name in names - {"experiment"}
        for root in roots
        for path in (root / name).glob("*")
        if path.is_dir()
    }
    return sorted((names | nested) - set(NOT_GROUPS))


def choices(roots: Sequence[Path], group: str) -> dict[str, Path]:
    """The choices of a group and their files; a choice's name is its path in the group without suffix."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted((root / group).rglob("*.yaml")):
            name = path.relative_to(root / group).with_suffix("").as_posix()
            if group == "experiment" or "/" not in name:
                found.setdefault(name, path)
    return dict(sorted(found.items()))


def hidden_files(roots: Sequence[Path]) -> list[Path]:
    """The user's files that are never used, because an earlier folder has a choice of the same name."""
    seen: set[str] = set()
    hidden: list[Path] = []
    for root in roots:
        names = {path.relative_to(root).as_posix(): path for path in root.rglob("*.yaml")}
        hidden += [path for name, path in sorted(names.items()) if name in seen]
        seen |= set(names)
    return hidden


def primary_names(roots: Sequence[Path]) -> list[str]:
    """The valid values of `--config-name`: the YAML files at the top of the roots."""
    return sorted({path.stem for root in roots for path in root.glob("*.yaml")})
