"""Sort the overrides of a command line into choices of groups and values of keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from expunge.config.location import choices, is_group
from expunge.core.errors import Fault, unknown

# Settings of other launchers; they do not change a run.
FOREIGN = ("hydra",)


@dataclass(frozen=True)
class Typed:
    """One override of a key's value.

    Attributes:
        text: the override as typed.
        key: the dotted key, without `+` or `~`.
        value: its Python value; None for a deletion.
        deletes: whether it deletes the key.
        appends: whether it was typed with one `+`, which means that the key should be new.
    """

    text: str
    key: str
    value: Any
    deletes: bool
    appends: bool


@dataclass
class Sorted:
    """The overrides of one command line.

    Attributes:
        groups: choices, ready for hydra (`trainer=SimNPO`).
        values: values of keys, in the order typed.
        notices: one line for each override that is ignored.
        faults: overrides that cannot be read, and choices that do not exist.
        broken: the groups whose choice does not exist.
    """

    groups: list[str] = field(default_factory=list)
    values: list[Typed] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


def sort_overrides(texts: Iterable[str], roots: Sequence[Path]) -> Sorted:
    """Sort overrides into choices of groups and values of keys.

    Returns:
        The sorted overrides, with all faults.
    """
    result = Sorted()
    parser = OverridesParser.create()
    for text in texts:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            result.faults.append(_unreadable(text, error))
            continue
        if override.key_or_group.split(".")[0].split("/")[0] in FOREIGN:
            result.notices.append(f"{text} is ignored: a single run does not use hydra's launcher")
        elif override.is_sweep_override():
            message = f"{text}: several values for one key"
            hint = "sweeps (-m) are not part of this version: start one run for each value"
            result.faults.append(Fault(message, hint))
        elif is_group(roots, override.key_or_group) and not isinstance(override.value(), dict):
            _add_group(result, text, override, roots)
        else:
            deletes, appends = override.type == OverrideType.DEL, override.type == OverrideType.ADD
            value = None if deletes else override.value()
            result.values.append(Typed(text, override.key_or_group, value, deletes, appends))
    return result


def _add_group(result: Sorted, text: str, override: Override, roots: Sequence[Path]) -> None:
    group, value = override.key_or_group, override.value()
    target = f"{group}@{override.package}" if override.package else group
    if override.type == OverrideType.DEL or value is None:
        result.groups.append(f"~{target}")
        return
    given = value if isinstance(value, list) else [value]
    names = [str(item).removesuffix(".yaml").removesuffix(".yml") for item in given]
    known = choices(roots, group)
    kind = "method" if group == "trainer" else group.rsplit("/", 1)[-1].removesuffix("s")
    for name in names:
        if name not in known:
            fault = unknown(kind, name, list(known))
            result.broken.add(group)
            result.faults.append(Fault(f"{text}: {fault.message}", fault.hint))
    if all(name in known for name in names):
        result.groups.append(
            f"{target}=[{','.join(names)}]" if isinstance(value, list) else f"{target}={names[0]}"
        )


def _unreadable(text: str, error: Exception) -> Fault:
    if "=" not in text:
        return Fault(
            f"{text!r} is neither an option nor KEY=VALUE",
            "write KEY=VALUE, for example trainer=NPO; see --help",
        )
    reason = " ".join(str(error).split())
    return Fault(
        f"{text}: cannot be read ({reason})", "quote the value: 'KEY=\"a value with = or , or spaces\"'"
    )
