"""Finding a loss by its handler, and binding the user's hyper-parameters to its signature."""

from __future__ import annotations

import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, cast

from expunge.core.errors import Fault, UserError, unknown
from expunge.methods.base import REQUIRED, Loss, LossSpec


def import_loss(handler: str) -> Loss:
    """Import a loss given as "module:function".

    Raises:
        UserError: malformed handler, no such module or function, or a function that `@loss` does not
            decorate.
    """
    module, name = import_module(handler)
    losses = [
        key for key, value in vars(module).items() if isinstance(getattr(value, "spec", None), LossSpec)
    ]
    function = getattr(module, name, None)
    if function is None:
        raise UserError.of([unknown(f"loss of {module.__name__}", name, losses)])
    if not isinstance(getattr(function, "spec", None), LossSpec):
        raise UserError(f"{handler} is not a loss", "decorate it with expunge.methods.base.loss")
    return cast(Loss, function)


def import_module(handler: str) -> tuple[types.ModuleType, str]:
    """The module of a "module:function", and the name of the function.

    Raises:
        UserError: malformed handler, or no such module.
    """
    module_name, colon, name = str(handler).partition(":")
    if not (module_name and colon and name):
        raise UserError(
            f"{handler!r} is not a handler", 'give "module:function", such as "expunge.methods.npo:npo"'
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"{module_name} needs the module {error.name!r}, which is not installed",
                f"pip install {error.name}",
            ) from error
        raise UserError(
            f"there is no module {module_name!r} (handler {handler!r})",
            f"{error.name!r} was not found on the Python path",
        ) from error
    except ValueError as error:
        raise UserError(
            f"{module_name} holds a loss that is not well formed: {error}", "see docs/architecture.md, losses"
        ) from error
    return module, name


def bind(
    loss: Loss,
    given: Mapping[str, Any],
    switches: Mapping[str, Any],
    other_keys: Sequence[str],
    faults: list[Fault],
) -> dict[str, Any]:
    """Bind hyper-parameters: what was given, over what `compat` sets, over the signature's defaults.

    Args:
        loss: whose keyword-only parameters are bound.
        given: what the user gave.
        switches: what `compat` sets.
        other_keys: keys that are valid beside the hyper-parameters, for the list of choices.
        faults: unknown names, missing values and wrong types are appended here.

    Returns:
        A value for every hyper-parameter that has one.
    """
    spec = loss.spec
    return bind_keywords(
        loss,
        spec.name,
        {**switches, **given},
        faults,
        hyper=spec.hyper,
        positive=spec.positive,
        other_keys=other_keys,
    )


def bind_keywords(
    function: Any,
    name: str,
    given: Mapping[str, Any],
    faults: list[Fault],
    *,
    hyper: Mapping[str, Any],
    positive: Sequence[str] = (),
    other_keys: Sequence[str] = (),
) -> dict[str, Any]:
    """Bind values to a function's keyword-only parameters.

    Args:
        function: whose annotations the values are held against.
        name: of the function, for the messages.
        given: values by name.
        faults: unknown names, missing values and wrong types are appended here.
        hyper: the parameters with their defaults; `REQUIRED` where there is none.
        positive: those that have to be above 0.
        other_keys: keys that are valid beside them, for the list of choices.

    Returns:
        A value for every parameter that has one.
    """
    hints = typing.get_type_hints(function)
    bound = {key: value for key, value in hyper.items() if value is not REQUIRED}
    for key, value in given.items():
        if key not in hyper:
            faults.append(unknown(f"hyper-parameter of {name}", key, (*hyper, *other_keys)))
            continue
        wrong = _wrong(value, hints.get(key, Any))
        if not wrong and key in positive and value <= 0:
            wrong = "a number above 0"
        if wrong:
            faults.append(Fault(f"{key} of {name} is {value!r}", f"give {wrong}"))
        bound[key] = value
    for key in hyper:
        if key not in bound:
            faults.append(
                Fault(f"{name} needs the hyper-parameter {key!r}", f"give trainer.method_args.{key}")
            )
    return bound


def as_number(name: str, value: Any, default: float, faults: list[Fault]) -> float:
    """A finite number, or `default` for None; a fault is appended for anything else."""
    if value is None:
        return default
    wrong = _wrong(value, float)
    if wrong:
        faults.append(Fault(f"{name} is {value!r}", f"give {wrong}"))
        return default
    return float(value)


def _wrong(value: Any, hint: Any) -> str:
    """What a value of this type hint has to be, where it is not; empty where it is, or where the hint says nothing that is checked."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        complaints = [_wrong(value, choice) for choice in choices]
        return "" if "" in complaints else " or ".join(complaints)
    if origin is Literal:
        return "" if value in choices else "one of " + ", ".join(map(repr, choices))
    if hint is type(None):
        return "" if value is None else "null"
    if hint is bool:
        return "" if isinstance(value, bool) else "true or false"
    if hint is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is float:
        return (
            ""
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            else "a finite number"
        )
    if hint is str:
        return "" if isinstance(value, str) else "a string"
    if origin in (Sequence, list, tuple):
        texts = (
            isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, str) for item in value)
        )
        return "" if texts or choices[:1] != (str,) else "a list of strings"
    return ""
