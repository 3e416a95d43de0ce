"""What the checks share: where faults are gathered, and how a key is named to the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.config.signatures import REQUIRED, Signature, read_signature
from expunge.core.config import Config
from expunge.core.errors import Fault, UserError, nearest


@dataclass
class Checking:
    """One validation under way.

    Attributes:
        cfg: the configuration under test.
        faults: what was found so far.
        broken: groups whose choice does not exist; what hangs on them is not judged.
    """

    cfg: Config
    broken: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, message: str, hint: str = "") -> None:
        """Note a fault, once."""
        found = Fault(message, hint)
        if found not in self.faults:
            self.faults.append(found)

    def typed(self, key: str, value: Any = None) -> str:
        """The override as typed that gave `key`, else `key=value` as it comes from the YAML."""
        for text in reversed(self.cfg.overrides):
            if text.lstrip("+").partition("=")[0] == key:
                return text
        return f"{key}={value}" if value is not None else key

    def signature(self, key: str, handler: Any) -> Signature | None:
        """The signature of the handler at `key`; None, with a fault noted, where it cannot be read."""
        if not isinstance(handler, str):
            self.fault(f"{key} is not given", "a handler is module:function")
            return None
        try:
            return read_signature(handler)
        except UserError as error:
            self.fault(f"{self.typed(key, handler)}: {error.faults[0].message}", error.faults[0].hint)
            return None

    def bind(
        self, key: str, given: Mapping[str, Any], signature: Signature, takes: Mapping[str, Any]
    ) -> None:
        """Hold the names given at `key` against those a function takes.

        Args:
            key: the dotted key of the mapping.
            given: name -> value.
            signature: the function, for the message.
            takes: name -> default, `REQUIRED` where it has to be given.
        """
        for name, value in given.items():
            if name not in takes and not signature.open:
                near = nearest(name, list(takes), count=1)
                listed = ", ".join(f"{item} ({default!r})" for item, default in takes.items()) or "none"
                hint = f"did you mean {near[0]!r}? " if near else ""
                self.fault(
                    f"{self.typed(f'{key}.{name}', value)}: {signature.name} takes no {name!r}",
                    f"{hint}it takes: {listed}",
                )
        for name, default in takes.items():
            if default is REQUIRED and given.get(name) is None:
                self.fault(
                    f"{key}.{name} is not given, and {signature.name} has no default for it",
                    f"add {key}.{name}=VALUE",
                )

    def known(self, key: str, names: Mapping[str, Any], choices: Sequence[str], what: str) -> None:
        """Every name at `key` must be one of `choices`."""
        for name, value in names.items():
            if name not in choices:
                near = nearest(name, choices, count=3)
                hint = (
                    f"did you mean {' or '.join(repr(item) for item in near)}?"
                    if near
                    else f"known: {', '.join(sorted(choices))}"
                )
                self.fault(f"{self.typed(f'{key}.{name}', value)}: {what} has no {name!r}", hint)

    def number(
        self, key: str, *, above: float | None = None, at_least: float | None = None, whole: bool = False
    ) -> None:
        """The value at `key`, where there is one, must be a number in range."""
        value = self.cfg.get(key)
        # "???" is told as missing already.
        if value is None or value == "???":
            return
        kind = "a whole number" if whole else "a number"
        bound = (
            f" above {above:g}"
            if above is not None
            else f" of at least {at_least:g}"
            if at_least is not None
            else ""
        )
        good = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (not whole or float(value).is_integer())
        )
        if (
            not good
            or value != value
            or (above is not None and value <= above)
            or (at_least is not None and value < at_least)
        ):
            self.fault(
                f"{self.typed(key, value)}: must be {kind}{bound}",
                f"for example {key}={_example(key, at_least, whole)}",
            )


def _example(key: str, at_least: float | None, whole: bool) -> str:
    if whole:
        return "4"
    return "1e-5" if key.endswith("learning_rate") else f"{at_least:g}" if at_least is not None else "1"
