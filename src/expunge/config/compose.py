"""Compose a config and its overrides into a `Config`; hydra is used only here and in `overrides.py`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expunge.config.aliases import translate
from expunge.config.location import config_roots, hidden_files, primary_names
from expunge.config.overrides import Sorted, Typed, sort_overrides
from expunge.core.binding import MISSING
from expunge.core.config import Config
from expunge.core.errors import Fault, did_you_mean, unknown

# Below these keys, names are arguments of functions: `validate` checks them against signatures, not against
# the YAML.
OPEN = (
    *(f"model.{name}" for name in ("model_args", "tokenizer_args", "template_args")),
    *(f"trainer.{name}" for name in ("args", "method_args", "optimizer", "mask", "listeners")),
    *("data", "eval", "compat", "procedure.args", "difficulty"),
)


@dataclass
class Composition:
    """A composed configuration and the faults found on the way.

    Attributes:
        config: the configuration without faulty overrides; None if composing failed.
        faults: the faults of the names and keys typed.
        broken: the groups whose choice does not exist; what depends on them is not checked.
    """

    config: Config | None
    faults: list[Fault] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


def compose_config(
    config_name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> Composition:
    """Compose a configuration: defaults list, choices, values, aliases, interpolations.

    Args:
        config_name: a YAML file at the top of the configs, `unlearn` or `unlearn.yaml`.
        overrides: `group=choice`, `key=value`, `+key=value`, `~key`, as typed.
        config_dirs: the user's folders with further choices.

    Returns:
        The resolved configuration, and the faults of overrides, choices and keys. Required values that are
        not given stay "???"; `validate` reports them.
    """
    roots = config_roots(config_dirs)
    name = config_name.removesuffix(".yaml").removesuffix(".yml")
    if name not in primary_names(roots):
        return Composition(None, [unknown("config", name, primary_names(roots))])
    given = sort_overrides(overrides, roots)
    faults = given.faults
    try:
        composed = _compose(name, _effective(given.groups, name, roots), roots)
        paths = [path for path, _ in _paths(OmegaConf.to_container(composed, resolve=False))]
        values, unknown_keys = _known_values(given, paths)
        faults += unknown_keys
        for value in values:
            _apply(composed, value)
        tree = _resolved(composed)
    except (HydraException, OmegaConfBaseException) as error:
        message = f"{name}.yaml does not compose: {' '.join(str(error).split())}"
        return Composition(None, [*faults, Fault(message, "see `expunge show` for the choices")])
    repeated = [
        f"{value.text}: the key exists already; it is read as {value.text.lstrip('+')}"
        for value in values
        if value.appends and value.key in paths
    ]
    hidden = [
        f"{path} is not used: an earlier configs folder has a choice of this name; rename the file"
        for path in hidden_files(roots)
    ]
    notices = [*given.notices, *repeated, *hidden]
    translation = translate(tree, {value.key for value in values if not value.deletes}, roots)
    # The launcher sets it.
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    config = Config(tree, tuple(overrides), (*notices, *translation.notices), ranks=ranks)
    return Composition(config, [*faults, *translation.faults], given.broken)


def _compose(name: str, lines: Sequence[str], roots: Sequence[Path]) -> DictConfig:
    OmegaConf.register_new_resolver("holdout_of", holdout_of, replace=True)
    OmegaConf.register_new_resolver("retain_of", retain_of, replace=True)
    extra = ",".join(f'"file://{root}"' for root in roots[1:])
    search = [f"hydra.searchpath=[{extra}]"] if extra else []
    with initialize_config_dir(config_dir=str(roots[0]), version_base="1.3", job_name="expunge"):
        return compose(config_name=name, overrides=[*lines, *search])


def _resolved(config: DictConfig) -> dict[str, Any]:
    """The plain tree. A missing value stays "???", also in values that are interpolated from it."""
    OmegaConf.set_struct(config, False)
    stand_in = "<missing>"
    # OmegaConf.missing_keys is not used: it raises if a value is interpolated from a missing one.
    for key in [
        key for key, value in _paths(OmegaConf.to_container(config, resolve=False)) if value == MISSING
    ]:
        OmegaConf.update(config, key, stand_in)
    tree = OmegaConf.to_container(config, resolve=True)
    assert isinstance(tree, dict)
    plain: dict[str, Any] = _replace(tree, stand_in, MISSING)
    return plain


def _replace(node: Any, old: str, new: str) -> Any:
    if isinstance(node, dict):
        return {str(key): _replace(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, old, new) for value in node]
    return node.replace(old, new) if isinstance(node, str) else node


def _effective(groups: Sequence[str], name: str, roots: Sequence[Path]) -> list[str]:
    """The choices in hydra's form, which depends on whether the config lists a group.

    If the config does not list a group, its choice gets a `+`. If a group is already empty, an override that
    empties it is dropped.
    """
    path = next(root / f"{name}.yaml" for root in roots if (root / f"{name}.yaml").is_file())
    defaults = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    entries = defaults.get("defaults", []) if isinstance(defaults, dict) else []
    listed = {
        group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items()
    }
    lines: list[str] = []
    for line in groups:
        group = line.lstrip("~").partition("=")[0]
        # Groups such as data/datasets@data.forget are listed by choices of other groups, not here.
        if "@" in group or listed.get(group) is not None:
            lines.append(line)
        elif not line.startswith("~"):
            lines.append(line if group in listed else f"+{line}")
    return lines


def _apply(config: DictConfig, typed: Typed) -> None:
    """Set or delete a value, like hydra's `++key=value` and `~key`; the tree is composed only once."""
    OmegaConf.set_struct(config, False)
    if typed.deletes:
        parent, _, last = typed.key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        del node[last]
    else:
        OmegaConf.update(config, typed.key, typed.value, merge=True, force_add=True)


def _known_values(given: Sorted, paths: Sequence[str]) -> tuple[list[Typed], list[Fault]]:
    """The values whose key exists or is an argument of a function; faults for the others."""
    values: list[Typed] = []
    faults: list[Fault] = []
    for typed in given.values:
        top = typed.key.split(".")[0]
        is_open = any(f"{typed.key}.".startswith(f"{prefix}.") for prefix in OPEN)
        if typed.key in paths or (is_open and top in paths and not typed.deletes):
            values.append(typed)
        elif top not in given.broken:
            faults.append(_unknown_key(typed, paths))
    return values, faults


def _unknown_key(typed: Typed, paths: Sequence[str]) -> Fault:
    if "/" in typed.key:
        return Fault(f"{typed.text}: there is no group {typed.key!r}", "`expunge ls` lists the groups")
    parent = typed.key.rpartition(".")[0]
    siblings = [path for path in paths if path.rpartition(".")[0] == parent]
    known = ", ".join(siblings or [path for path in paths if "." not in path])
    hint = did_you_mean(typed.key, paths, f"known: {known}")
    return Fault(f"{typed.text}: there is no key {typed.key!r}", hint)


def _paths(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a tree with its value, including mappings."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def holdout_of(forget_split: str | None) -> str | None:
    """TOFU's holdout split for a forget split: forget05 -> holdout05; None for other names."""
    match = re.fullmatch(r"forget(\d{2})", forget_split or "")
    return f"holdout{match[1]}" if match else None


def retain_of(forget_split: str | None) -> str | None:
    """TOFU's retain split for a forget split: forget05 -> retain95; None for other names."""
    match = re.fullmatch(r"forget(\d{2})", forget_split or "")
    return f"retain{100 - int(match[1]):02d}" if match else None
