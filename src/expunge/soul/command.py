"""Read a command line of the SOUL family: flags, the file of `--config_file`, and our overrides."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.core.errors import Fault, UserError, nearest, unknown
from expunge.core.files import read_json
from expunge.soul.flags import Flag, spellings
from expunge.soul.writing import assign

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*=.*|~[A-Za-z_][\w./@]*", re.DOTALL)
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
EPILOG = """\
A switch without a value, or with 1, is on; with 0 it is off. After the flags, overrides as for
`expunge unlearn` may follow: KEY=VALUE or GROUP=CHOICE. They win over the flags.
"""
ALONE = object()
"""Marks a flag that was typed without a value."""


@dataclass
class Given:
    """The content of a command line.

    Attributes:
        values: the values by the flag's dotted name.
        where: how each value was given, for messages: `--unlearn.lr 5e-6`, or `unlearn.lr in FILE`.
        overrides: our overrides, as typed.
        faults: what cannot be read or is wrong.
        notices: remarks on defaults, and on flags that are translated or ignored.
        written: override -> its flag, so that a fault of the override names the flag.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag; `default` if it was not given."""
        return self.values.get(name, default)

    def typed(self, name: str) -> str:
        """The flag as it was given."""
        return self.where.get(name, f"--{name}")

    def assigned(self, key: str, flag: str) -> str:
        """A flag's value as an override."""
        override = assign(key, self.get(flag))
        self.written[override] = self.typed(flag)
        return override

    def fault(self, message: str, hint: str = "") -> None:
        """Record a fault."""
        self.faults.append(Fault(message, hint))


def build_parser(
    prog: str, flags: tuple[Flag, ...], summary: str, with_file: bool
) -> argparse.ArgumentParser:
    """The parser of a script. Its values are texts; `read` converts them and reports all faults together."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=summary,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if with_file:
        parser.add_argument(
            "--config_file",
            "--config-file",
            metavar="FILE.json",
            help="a file of flags, nested by their dots; flags on the command line win",
        )
    names: dict[str, list[str]] = {flag.name: [] for flag in flags}
    for spelling, flag in spellings(flags).items():
        names[flag.name].append(f"--{spelling}")
    for flag in flags:
        listed = f": {', '.join(flag.choices)}" if flag.choices else ""
        parser.add_argument(
            *names[flag.name],
            dest=flag.name,
            nargs="?",
            const=ALONE,
            metavar="0|1" if flag.kind == "switch" else "VALUE",
            help=(flag.help + listed).replace("%", "%%"),
        )
    return parser


def read(
    parser: argparse.ArgumentParser, flags: tuple[Flag, ...], argv: Sequence[str] | argparse.Namespace
) -> Given:
    """Read a command line with the parser from `build_parser`; `argv` may be the parsed namespace.

    Unknown flags, values of the wrong kind and unreadable files are among the faults of the result.
    """
    given = Given()
    known = {flag.name: flag for flag in flags}
    rest: list[str] = []
    if isinstance(argv, argparse.Namespace):
        args = argv
        given.overrides = tuple(getattr(args, "overrides", ()) or ())
    else:
        words, given.overrides = _without_overrides(argv, spellings(flags))
        args, rest = parser.parse_known_args(words)
    given.faults += _unknown_flags(rest, [*spellings(flags), "config_file"])
    if file := getattr(args, "config_file", None):
        _read_file(Path(str(file)).expanduser(), known, given)
    for name, flag in known.items():
        text = getattr(args, name, None)
        if text is not None:
            _take(given, flag, text, f"--{name}" if text is ALONE else f"--{name} {text}")
    return given


def _without_overrides(argv: Sequence[str], names: Mapping[str, Flag]) -> tuple[list[str], tuple[str, ...]]:
    """Separate flags and overrides. A word KEY=VALUE is an override if the flag before it takes no value."""
    words: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in argv:
        if OVERRIDE.fullmatch(word) and not takes_value:
            overrides.append(word)
            continue
        words.append(word)
        flag = names.get(word.lstrip("-"))
        takes_value = word.startswith("--") and "=" not in word and (flag is None or flag.kind != "switch")
    return words, tuple(overrides)


def _unknown_flags(rest: Sequence[str], names: Sequence[str]) -> Iterator[Fault]:
    after_flag = False
    for word in rest:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0]
            near = nearest(name, names, count=1)
            yield Fault(
                f"unknown flag --{name}", f"did you mean --{near[0]}?" if near else "--help lists the flags"
            )
        elif not after_flag:
            yield Fault(
                f"{word!r} is neither a flag nor the value of one",
                "a flag begins with --, an override has the form KEY=VALUE",
            )
        after_flag = word.startswith("-")


def _read_file(path: Path, known: Mapping[str, Flag], given: Given) -> None:
    try:
        content = read_json(path)
    except UserError as error:
        given.faults += error.faults
        return
    if not isinstance(content, dict):
        given.fault(
            f"{path} is not a JSON object",
            'write {"overall": {...}, "unlearn": {...}, "dataset": {...}, "logger": {...}}',
        )
        return
    for name, value in _flat(content):
        if name not in known:
            near = nearest(name, list(known), count=1)
            given.fault(
                f"{path}: unknown key {name!r}",
                f"did you mean {near[0]!r}?" if near else "the keys are the flags that --help lists",
            )
        elif value is not None:
            text = str(int(value)) if isinstance(value, bool) else str(value)
            _take(given, known[name], text, f"{name}={text} in {path}")


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _take(given: Given, flag: Flag, text: Any, where: str) -> None:
    """Record a flag's value, or its fault."""
    if text is ALONE and flag.kind != "switch":
        given.fault(f"--{flag.name} is given without a value", f"write --{flag.name} VALUE")
        return
    value, wrong = (True, "") if text is ALONE else _value(flag.kind, str(text))
    if wrong:
        given.fault(f"{where}: {text!r} is not {wrong}", f"for example --{flag.name} {_EXAMPLES[flag.kind]}")
    elif flag.choices and value not in flag.choices:
        kind = flag.name.rpartition(".")[2].removeprefix("unlearn_").removesuffix("_name")
        fault = unknown(kind, str(value), flag.choices)
        given.fault(f"{where}: {fault.message}", fault.hint)
    else:
        given.values[flag.name], given.where[flag.name] = value, where


_EXAMPLES = {"switch": "1", "whole": "4", "number": "1e-4", "text": "NAME"}


def _value(kind: str, text: str) -> tuple[Any, str]:
    """The value of a text; if the text is not of its kind, the second item says what it should be."""
    if kind == "text":
        return text, ""
    if kind == "switch":
        return text.lower() in TRUE, "" if text.lower() in (*TRUE, *FALSE) else "0 or 1"
    try:
        number = float(text)
    except ValueError:
        return None, "a whole number" if kind == "whole" else "a number"
    if not math.isfinite(number) or (kind == "whole" and not number.is_integer()):
        return None, "a whole number" if kind == "whole" else "a finite number"
    whole = number.is_integer() and (kind == "whole" or not {".", "e"} & {*text.lower()})
    return int(number) if whole else number, ""
