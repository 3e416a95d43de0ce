"""The errors a user can cause. Each says what was given, what is wrong, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong with what the user gave.

    Attributes:
        message: what was given and what is wrong with it.
        hint: what to do about it; empty when the message says so already.
    """

    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UserError(Exception):
    """An error the user can mend. The command line prints it without a traceback and exits with 2.

    Args:
        message: what was given and what is wrong.
        hint: what to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.faults: tuple[Fault, ...] = (Fault(message, hint),)
        super().__init__(str(self.faults[0]))

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> UserError:
        """One error that tells several faults together.

        Raises:
            ValueError: when there is no fault to tell.
        """
        faults = tuple(faults)
        if not faults:
            raise ValueError("UserError.of needs at least one fault")
        error = cls(faults[0].message, faults[0].hint)
        error.faults = faults
        error.args = ("\n".join(str(fault) for fault in faults),)
        return error


class Faults:
    """Faults of several things that are checked one after the other, to be reported together.

    Attributes:
        found: each once, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is wrong inside the block, and go on after it."""
        try:
            yield
        except UserError as error:
            self.found += [fault for fault in error.faults if fault not in self.found]

    def raise_found(self) -> None:
        """Raise what was noted.

        Raises:
            UserError: something was noted.
        """
        if self.found:
            raise UserError.of(self.found)


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: the distribution that is missing.
        extra: the extra of expunge that brings it.
        purpose: what needs it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            f'pip install "expunge[{extra}]"',
        )


class MissingDataError(UserError):
    """Rows that are neither on this machine nor, as far as it can be asked, on the hub."""


def nearest(name: str, choices: Sequence[str], count: int = 3) -> list[str]:
    """The choices spelt most like `name`, best first, case ignored."""
    folded = {choice.lower(): choice for choice in choices}
    return [folded[hit] for hit in difflib.get_close_matches(name.lower(), list(folded), n=count, cutoff=0.5)]


def unknown(kind: str, name: str, choices: Sequence[str]) -> Fault:
    """The fault of a name that is none of the choices: near match first, then the list."""
    near = nearest(name, choices, count=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(sorted(choices)) or "(none)"
    return Fault(f"unknown {kind} {name!r}", f"{hint}known: {listed}")
