"""The errors a user can cause. Each says what was given, what is wrong, and what to do."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault in the user's input.

    Attributes:
        message: what was given and what is wrong with it.
        hint: what to do about it; empty if the message already says so.
    """

    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UserError(Exception):
    """An error that the user can fix; the command line prints it without a traceback, exit code 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(message, hint),)
        super().__init__(str(self.faults[0]))

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> UserError:
        """One error that reports several faults together.

        Raises:
            ValueError: there is no fault.
        """
        faults = tuple(faults)
        if not faults:
            raise ValueError("UserError.of needs at least one fault")
        error = cls(faults[0].message, faults[0].hint)
        error.faults = faults
        error.args = ("\n".join(str(fault) for fault in faults),)
        return error


class Faults:
    """Collects the faults of several checks, to report them together.

    Attributes:
        faults: each fault once, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, message: str, hint: str = "") -> None:
        """Record a fault, once."""
        self.record([Fault(message, hint)])

    def record(self, faults: Iterable[Fault]) -> None:
        """Record faults, each once."""
        self.faults += [fault for fault in faults if fault not in self.faults]

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record the faults raised inside the block, and continue after the block."""
        try:
            yield
        except UserError as error:
            self.record(error.faults)

    def raise_found(self) -> None:
        """Raise all recorded faults together.

        Raises:
            UserError: at least one fault was recorded.
        """
        if self.faults:
            raise UserError.of(self.faults)


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f'pip install "expunge[{extra}]"',
        )


def need_package(package: str, extra: str, purpose: str) -> None:
    """Refuse a purpose whose package is not installed; arguments as for `MissingExtraError`."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)


class MissingDataError(UserError):
    """Rows were found neither on this machine nor on the hub (or the hub cannot be reached)."""


def nearest(name: str, choices: Sequence[str], count: int = 3) -> list[str]:
    """The choices with the spelling nearest to `name`, nearest first, case ignored."""
    folded = {choice.lower(): choice for choice in choices}
    return [folded[hit] for hit in difflib.get_close_matches(name.lower(), list(folded), n=count, cutoff=0.5)]


def did_you_mean(name: str, choices: Sequence[str], rest: str = "", count: int = 1) -> str:
    """A hint: the `count` nearest choices, if any is near, then `rest`."""
    near = " or ".join(map(repr, nearest(name, choices, count)))
    return f"did you mean {near}? {rest}".strip() if near else rest


def unknown(kind: str, name: str, choices: Sequence[str]) -> Fault:
    """The fault of a name that is not one of the choices; the hint has the near match, then the list."""
    known = ", ".join(sorted(choices)) or "(none)"
    return Fault(f"unknown {kind} {name!r}", did_you_mean(name, choices, f"known: {known}"))


def compiled(pattern: str, given: str) -> re.Pattern[str]:
    """Compile a user's regular expression; `given` names it in the message.

    Raises:
        UserError: it is not valid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"{given} is not a regular expression: {error}", "use the syntax of Python's re module"
        ) from error
