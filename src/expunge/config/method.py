"""The method of a run, as given in the configuration: losses, their weights, schedule, combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from expunge.config.short_names import COMBINATIONS, RETAIN_TERMS, SCHEDULES
from expunge.core.annotations import ANY, Type
from expunge.core.binding import Binder, Bound, Option, Switches
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.handlers import REQUIRED, Code, Signature, read_signature
from expunge.core.needs import parse_need

KEY = "trainer.method_args"
"""The key of the method's own loss; the other parts are bound one key below."""
RETAIN, SCHEDULE, COMBINE = f"{KEY}.retain", f"{KEY}.schedule", f"{KEY}.combine"
NONE = (None, "none", "None", "NONE")
WEIGHT = Type("float", ranges=(("AtLeast", 0),))


def loss_defaults(signature: Signature) -> Mapping[str, Any]:
    """The keyword arguments of a loss's `@loss(...)` decorator; empty if it has none."""
    return signature.decorators.get("loss", {})


def weight_options(signature: Signature) -> dict[str, Option]:
    """The valid keys of `trainer.method_args` beside hyper-parameters: weights of terms, and other parts."""
    defaults = loss_defaults(signature)
    return {
        "gamma": Option(_weight(signature), WEIGHT),
        "alpha": Option(defaults.get("alpha", 1.0), WEIGHT),
        "retain": Option(defaults.get("retain", "none"), ANY),
        "schedule": Option(defaults.get("schedule", "constant"), ANY),
        "combine": Option("sum", ANY),
        **{key: Option(_weight(term), WEIGHT) for key, term in extra_terms(signature).items()},
    }


def hyper_parameters(signature: Signature) -> dict[str, Any]:
    """All valid keys of `trainer.method_args` for a method, with their defaults."""
    options = weight_options(signature)
    return {**signature.keyword, **{name: option.default for name, option in options.items()}}


def extra_terms(signature: Signature) -> dict[str, Signature]:
    """The extra terms of a method, by the keys of their weights in `trainer.method_args`."""
    listed = loss_defaults(signature).get("extra", ())
    found = {key: _loss(handler) for key, handler in listed} if isinstance(listed, tuple) else {}
    return {key: term for key, term in found.items() if term is not None}


def losses_of(cfg: Config) -> list[Signature]:
    """The losses of a run: the method's own, its extra terms with a weight other than 0, and its retain term.

    The retain term is the chosen one, else the one in the method's decorator. What is not a loss is skipped.
    """
    method = _loss(cfg.get("trainer.handler"))
    weights = {**hyper_parameters(method), **cfg.section(KEY)} if method else {}
    extra = [term for key, term in extra_terms(method).items() if weights[key] != 0] if method else []
    choice = weights.get("retain", "none")
    name = choice.get("handler") if isinstance(choice, Mapping) else choice
    retain = None if name in NONE else _loss(RETAIN_TERMS.get(str(name), name))
    return [signature for signature in (method, *extra, retain) if signature]


def bind_method(
    binder: Binder, handler: Any, method_args: Mapping[str, Any], switches: Switches = lambda _: {}
) -> Bound | None:
    """Bind every part of a method: its own loss at `bound[KEY]` of the binder, the other parts one key below.

    Args:
        binder: receives the faults and the bound functions.
        handler: the method's loss as `module:function`.
        method_args: its hyper-parameters; the weights `gamma` (own term), `alpha` (retain term) and those of
            its extra terms; `retain`, `schedule` and `combine`: null, a short name, or
            {handler, ...keyword arguments} (`retain_loss_type`, the field's key, is a short name too).
        switches: the keywords that `compat` sets for a loss; `method_args` wins.

    Returns:
        The method's own loss; None if it has a fault, which is recorded.
    """
    signature = _loss_at(binder, "trainer.handler", handler)
    if signature is None:
        return None
    given = {name: value for name, value in method_args.items() if name != "retain_loss_type"}
    if "retain_loss_type" in method_args:
        given.setdefault("retain", method_args["retain_loss_type"])
    options = weight_options(signature)
    # A weight of null means the default.
    present = {name: value for name, value in given.items() if value is not None or name not in options}
    weights = [name for name, option in options.items() if option.type == WEIGHT]
    advice = {name: f"for example {KEY}.{name}=0" for name in weights}
    own_switches = switches(signature.name)
    own = binder.bind(KEY, signature, present, options=options, switches=own_switches, advice=advice)
    retain, schedule, combine = (
        given.get(name, options[name].default) for name in ("retain", "schedule", "combine")
    )
    _bind_retain(binder, retain, switches)
    if _handler(schedule) not in (*NONE, "constant", SCHEDULES["constant"]):
        binder.choose(SCHEDULE, schedule, SCHEDULES, "schedule", places=1)
    if _handler(combine) not in (*NONE, "sum"):
        binder.choose(COMBINE, combine, COMBINATIONS, "combination of gradients", places=0)
        if _handler(retain) in NONE:
            text = f"{binder.typed(COMBINE, _handler(combine))} needs the gradient of a retain term"
            binder.fault(f"{text}, and there is none", "choose retain=nll")
    if own is not None:
        _bind_extra(binder, own, switches)
        _one_pattern(binder)
    return own


def terms_of(bound: Mapping[str, Bound]) -> Iterator[tuple[Bound, float, bool]]:
    """The terms of a bound method, its own first: (loss, weight, whether it is the retain term)."""
    own = bound[KEY]
    yield own, float(own.options["gamma"]), False
    for key in extra_terms(own.signature):
        if f"{KEY}.{key}" in bound:
            yield bound[f"{KEY}.{key}"], float(own.options[key]), False
    if RETAIN in bound:
        yield bound[RETAIN], float(own.options["alpha"]), True


def _bind_retain(binder: Binder, choice: Any, switches: Switches) -> None:
    given = dict(choice) if isinstance(choice, Mapping) else {"handler": choice}
    if "handler" not in given:
        hint = f"set {RETAIN}.handler to one of {', '.join(RETAIN_TERMS)}, none, or module:function"
        binder.fault(f"{RETAIN} has no handler", hint)
    elif (handler := given.pop("handler")) not in NONE:
        where = f"{RETAIN}.handler" if isinstance(choice, Mapping) else RETAIN
        signature = _loss_at(binder, where, handler, RETAIN_TERMS)
        if signature is not None:
            binder.bind(RETAIN, signature, given, switches=switches(signature.name))


def _bind_extra(binder: Binder, own: Bound, switches: Switches) -> None:
    """Bind the extra terms of a method. A term of weight 0 is not computed and needs no hyper-parameters."""
    values = {**own.signature.keyword, **own.kwargs}
    for key, term in extra_terms(own.signature).items():
        if own.options[key]:
            shared = {name: values[name] for name in term.keyword if name in values}
            binder.bind(f"{KEY}.{key}", term, shared, switches=switches(term.name))


def _one_pattern(binder: Binder) -> None:
    """Check that all terms read hidden states of the same modules.

    A term without `module_regex` gets the pattern of the other terms.
    """
    keys = [key for key in binder.bound if key.startswith(KEY) and _hidden(binder.bound[key])]
    readers = {key: binder.bound[key] for key in keys}
    given = [term for term in readers.values() if term.value("module_regex") is not None]
    for key, term in readers.items():
        pattern = term.value("module_regex") or (given[0].value("module_regex") if given else None)
        if pattern is None:
            hint = f"add {key}.module_regex=REGEX"
            binder.fault(f"{term.name} reads the output of a module, and module_regex is not given", hint)
            continue
        if isinstance(pattern, Code):
            continue
        first = given[0].value("module_regex")
        if pattern != first:
            message = f"{term.name} has module_regex={pattern!r} and {given[0].name} has {first!r}"
            binder.fault(message, "give the same pattern to both")
        elif "hidden_BTD" in _hidden(term) and not isinstance(pattern, str):
            message = f"{term.name} reads one module, and module_regex has {len(pattern)} patterns"
            binder.fault(message, "give one regular expression")
        elif "hidden_LBTD" in _hidden(term) and isinstance(pattern, str):
            pattern = (pattern,)
        if pattern == term.value("module_regex"):
            continue
        binder.bound[key] = replace(term, kwargs={**term.kwargs, "module_regex": pattern})


def _hidden(bound: Bound) -> set[str]:
    """The quantities of hidden states that a loss reads; empty for anything else."""
    if "loss" not in bound.signature.decorators:
        return set()
    needs = [parse_need(name) for name in bound.signature.positional]
    return {need.quantity for need in needs if need.hidden}


def _loss_at(
    binder: Binder, key: str, handler: Any, names: Mapping[str, str] | None = None
) -> Signature | None:
    """The signature of a loss with known quantities; for anything else None, and a fault is recorded."""
    signature = binder.find(key, handler, names or {}, "retain term" if names else "method")
    if signature is None:
        return None
    before = len(binder.faults)
    if "loss" not in signature.decorators:
        hint = "choose a method (`expunge ls methods`), or decorate it with expunge.methods.base.loss"
        binder.refuse(key, signature.handler, f"{signature.name} is not a loss", hint)
    for term in (signature, *extra_terms(signature).values()):
        for name in term.positional if "loss" in term.decorators else ():
            try:
                parse_need(name)
            except ValueError as error:
                hint = "the positional parameters of a loss name the quantities that it reads"
                binder.refuse(key, term.handler, str(error), hint)
    return signature if len(binder.faults) == before else None


def _loss(handler: Any) -> Signature | None:
    try:
        signature = read_signature(handler) if isinstance(handler, str) and ":" in handler else None
    except UserError:
        return None
    return signature if signature and "loss" in signature.decorators else None


def _weight(signature: Signature) -> Any:
    """The default weight of a loss as a method's own term; `REQUIRED` if it has none."""
    gamma = loss_defaults(signature).get("gamma", 1.0)
    return REQUIRED if gamma is None else gamma


def _handler(choice: Any) -> Any:
    return choice.get("handler") if isinstance(choice, Mapping) else choice
