"""One binder: it checks the values in a configuration against the signature of the function that it names.

Validation binds, from source alone, and finds every fault. The run loads and calls exactly what was bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.core.annotations import ANY, Type, converted, type_of, wrong
from expunge.core.errors import Faults, UserError, did_you_mean, unknown
from expunge.core.handlers import REQUIRED, Code, Signature, load_handler, read_signature

MISSING = "???"
"""Stands for a required value that is not given; composing reports it."""


@dataclass(frozen=True)
class Option:
    """A key that stands beside a function's keywords and is read by the caller of the function."""

    default: Any
    type: Type = ANY


@dataclass(frozen=True)
class Bound:
    """A function with its keyword arguments from a configuration.

    Attributes:
        signature: the signature of the function.
        kwargs: the given values by keyword; defaults stay in the function.
        options: every option beside the keywords, given or default.
        given: the keys in the configuration.
    """

    signature: Signature
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    @property
    def handler(self) -> str:
        """`module:function`."""
        return self.signature.handler

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.signature.name

    def value(self, keyword: str) -> Any:
        """The value of a keyword: the given one, else the default (`Code` if it is not a literal)."""
        return self.kwargs.get(keyword, self.signature.keyword.get(keyword))

    def load(self) -> Any:
        """Import the function or class.

        Raises:
            UserError: it cannot be imported.
        """
        return load_handler(self.handler)


class Binder(Faults):
    """Binds values. Faults are collected; `bound` has what has none, by the dotted key of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.bound: dict[str, Bound] = {}

    def typed(self, key: str, value: Any = REQUIRED) -> str:
        """`key=value` as the user gave it; the key alone if there is no value."""
        return key if value is REQUIRED else f"{key}={'null' if value is None else value}"

    def refuse(self, key: str, value: Any, reason: str, hint: str = "") -> None:
        """Record the fault of the value at a key."""
        self.fault(f"{self.typed(key, value)}: {reason}", hint)

    def find(
        self, key: str, handler: Any, names: Mapping[str, str], what: str, places: int | None = None
    ) -> Signature | None:
        """The signature of a handler; if it cannot be read, a fault is recorded and the result is None.

        Args:
            key: the key of the handler.
            handler: `module:function`, or one of the short names.
            names: short names and their handlers.
            what: the kind of thing, for messages.
            places: the number of positional arguments that the caller passes; None = any.
        """
        if not isinstance(handler, str) or not handler:
            known = f"one of {', '.join(names)}, or module:function" if names else "module:function"
            self.fault(f"{key} is not given: there is no {what}", f"set {key} to {known}")
            return None
        handler = names.get(handler, names.get(handler.lower(), handler))
        if ":" not in handler and names:
            found = unknown(what, handler, list(names))
            self.refuse(key, handler, found.message, f"{found.hint}, or module:function")
            return None
        try:
            signature = read_signature(handler)
        except UserError as error:
            for found in error.faults:
                self.refuse(key, handler, found.message, found.hint)
            return None
        needed = [name for name in signature.positional if name not in signature.positional_defaults]
        if places is not None and len(needed) != places:
            hint = f"it has {len(needed)} required positional parameters; a {what} has {places}"
            self.refuse(key, handler, f"{signature.name} is not a {what}", hint)
            return None
        return signature

    def choose(
        self, key: str, node: Any, names: Mapping[str, str], what: str, *, places: int | None = None
    ) -> Bound | None:
        """Bind the function that a section names; arguments as for `find`.

        `node` is a short name, `module:function`, or {handler, ...keyword arguments}.

        Returns:
            The bound function; None if there is a fault, which is recorded.
        """
        given = dict(node) if isinstance(node, Mapping) else {"handler": node}
        where = f"{key}.handler" if isinstance(node, Mapping) else key
        signature = self.find(where, given.pop("handler", None), names, what, places)
        return None if signature is None else self.bind(key, signature, given)

    def bind(
        self,
        key: str,
        signature: Signature,
        given: Mapping[str, Any],
        *,
        options: Mapping[str, Option] | None = None,
        switches: Mapping[str, Any] | None = None,
        positional: Sequence[str] = (),
        advice: Mapping[str, str] | None = None,
    ) -> Bound | None:
        """Bind the values given at `key` to a function's keywords.

        Args:
            key: the dotted key of the mapping.
            signature: the signature of the function.
            given: name -> value.
            options: keys that are valid beside the keywords.
            switches: the keywords that `compat` sets; a given value wins.
            positional: positional parameters that may be given by name as well, such as the tables of a
                metric.
            advice: the hint for a wrong value, by name; without it, the hint states the default.

        Returns:
            The function with its keyword arguments, also stored at `bound[key]`; None if there is a fault,
            which is recorded.
        """
        before, beside, present = len(self.faults), options or {}, {**(switches or {}), **given}
        takes = {
            name: Option(default, type_of(signature, name)) for name, default in signature.keyword.items()
        }
        takes |= {name: Option(signature.positional_defaults.get(name, REQUIRED)) for name in positional}
        known = {**takes, **beside}
        for name, value in given.items():
            self._value(f"{key}.{name}", name, value, signature, known, (advice or {}).get(name, ""))
        for name, value in (switches or {}).items():
            if name not in given:
                self._value(f"compat.switches.{signature.name}.{name}", name, value, signature, takes)
        for name, option in known.items():
            if option.default is REQUIRED and present.get(name) is None:
                self.fault(
                    f"{key}.{name} is not given, and {signature.name} has no default for it",
                    f"add {key}.{name}=VALUE",
                )
        if len(self.faults) > before:
            return None
        kwargs = {
            name: converted(value, takes[name].type) if name in takes else value
            for name, value in present.items()
            if name not in beside
        }
        values = {name: present.get(name, option.default) for name, option in beside.items()}
        self.bound[key] = Bound(signature, kwargs, values, tuple(given))
        return self.bound[key]

    def check(self, key: str, value: Any, hint: Type, advice: str = "") -> bool:
        """Record a fault if a value does not have a type.

        Args:
            key: the dotted key of the value.
            value: as given; `MISSING` is reported elsewhere.
            hint: the type.
            advice: what to do about a wrong value.

        Returns:
            Whether the value is valid.
        """
        complaint = "" if value == MISSING else wrong(value, hint)
        if complaint:
            words = [choice for choice in hint.choices() if isinstance(choice, str)]
            self.refuse(key, value, f"must be {complaint}", did_you_mean(str(value), words, advice))
        return not complaint

    def _value(
        self,
        key: str,
        name: str,
        value: Any,
        signature: Signature,
        known: Mapping[str, Option],
        advice: str = "",
    ) -> None:
        """Record the fault of one value: no such keyword, missing, refused, or of another type."""
        if name not in known:
            if not signature.open:
                listed = ", ".join(f"{item} ({option.default!r})" for item, option in known.items())
                hint = did_you_mean(name, list(known), f"it takes: {listed or 'nothing'}")
                self.refuse(key, value, f"{signature.name} takes no {name!r}", hint)
            return
        option = known[name]
        required = option.default is REQUIRED
        advice = advice or ("" if required else f"the default is {_shown(option.default)}")
        if value == MISSING:
            self.fault(f"{key} is not given", f"add {key}=VALUE")
        elif reason := _refused(signature, name, value):
            self.refuse(key, value, reason, advice)
        # A required value that is null is reported as not given.
        elif value is not None or not required:
            self.check(key, value, option.type, advice)


def bound_alone(bind: Callable[..., object], *args: Any) -> dict[str, Bound]:
    """Call a binding function without a whole configuration.

    Returns:
        The bound functions by key.

    Raises:
        UserError: all faults together.
    """
    binder = Binder()
    bind(binder, *args)
    binder.raise_found()
    return binder.bound


def _refused(signature: Signature, name: str, value: Any) -> str:
    """The reason in a decorator's `refused` why this function does not support a value; empty if it does."""
    for decorator in signature.decorators.values():
        if reason := (decorator.get("refused") or {}).get(f"{name}={value}"):
            return str(reason)
    return ""


def _shown(default: Any) -> str:
    return "null" if default is None else default.text if isinstance(default, Code) else repr(default)


Switches = Callable[[str], Mapping[str, Any]]
"""Maps a function's name to the keyword arguments that `compat` sets for it."""
