"""Checks of the `trainer` section: the method and its arguments, the retain term, the TrainingArguments."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.stepping import check_stepping
from expunge.config.signatures import REQUIRED, Signature, dataclass_fields, read_names, read_signature
from expunge.core.config import Config
from expunge.core.errors import UserError, nearest
from expunge.core.needs import parse_need

# Keys of `trainer.args` that are ours and not TrainingArguments'.
OWN_ARGS = ("warmup_epochs",)
# Keys of `trainer.method_args` that weigh the terms; every method takes them.
WEIGHTS = ("gamma", "alpha", "retain", "schedule", "combine")
# Those of them that name code by a short name or a handler, and where the short names are.
BY_NAME = {
    "schedule": ("expunge.methods.schedule", "SCHEDULES"),
    "combine": ("expunge.methods.combine", "COMBINATIONS"),
}
# Dataset handlers of ours that give no alternate answers.
WITHOUT_ALTERNATES = ("expunge.data.datasets:qa", "expunge.data.datasets:text")
STRATEGIES = ("no", "steps", "epoch", "best")


def check_trainer(check: Checking) -> None:
    """Everything about the optimisation that can be known before anything is loaded."""
    signature = check.signature("trainer.handler", check.cfg.get("trainer.handler"))
    if signature is not None:
        for loss in (signature, *extra_terms(signature).values()):
            _needs(check, "trainer.handler", loss)
        _method_args(check, signature)
        # A procedure says itself what rows its stages read.
        if check.cfg.get("procedure") is None:
            _sides(check, signature)
    _retain(check)
    for name in BY_NAME:
        _by_name(check, name)
    _training_arguments(check)
    check_stepping(check)


@cache
def training_arguments() -> tuple[str, ...]:
    """The names of transformers' TrainingArguments in the installed version, from its source; transformers is not imported."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return ()
    return tuple(dataclass_fields(Path(spec.origin).parent / "training_args.py", "TrainingArguments"))


def loss_defaults(signature: Signature) -> Mapping[str, Any]:
    """The keyword arguments of a loss's `@loss(...)` decorator; empty where it has none."""
    return signature.decorators.get("loss", {})


def hyper_parameters(signature: Signature) -> dict[str, Any]:
    """What `trainer.method_args` may hold for a method, with the defaults: its own, and the weights of its terms."""
    decorator = loss_defaults(signature)
    weights = {
        "gamma": _weight(signature),
        "alpha": decorator.get("alpha", 1.0),
        "retain": decorator.get("retain", "none"),
        "schedule": decorator.get("schedule", "constant"),
        "combine": "sum",
    }
    return {
        **signature.keyword,
        **weights,
        **{key: _weight(term) for key, term in extra_terms(signature).items()},
    }


def _weight(signature: Signature) -> Any:
    """The default weight of a loss as a method's own term."""
    gamma = loss_defaults(signature).get("gamma", 1.0)
    return REQUIRED if gamma is None else gamma


def extra_terms(signature: Signature) -> dict[str, Signature]:
    """The further terms of a method's own, by the keys of their weights in `trainer.method_args`."""
    listed = loss_defaults(signature).get("extra", ())
    found = {key: _loss(handler) for key, handler in listed} if isinstance(listed, tuple) else {}
    return {key: term for key, term in found.items() if term is not None}


def losses_of(cfg: Config) -> list[Signature]:
    """The method's losses, those of its further terms that have a weight, and its retain term.

    The retain term is the one chosen, else the one the method's decorator names. What is no loss is left out.
    """
    method = _loss(cfg.get("trainer.handler"))
    weights = {**hyper_parameters(method), **cfg.section("trainer.method_args")} if method else {}
    extra = [term for key, term in extra_terms(method).items() if weights[key] != 0] if method else []
    if "retain" in cfg.section("trainer.method_args"):
        retain = _loss(cfg.get("trainer.method_args.retain.handler"))
    else:
        name = loss_defaults(method).get("retain", "none") if method else "none"
        retain = _loss(
            (name if ":" in name else f"expunge.methods.retain:{name}") if name != "none" else None
        )
    return [signature for signature in (method, *extra, retain) if signature]


def _loss(handler: Any) -> Signature | None:
    try:
        signature = read_signature(handler) if isinstance(handler, str) and ":" in handler else None
    except UserError:
        return None
    return signature if signature and "loss" in signature.decorators else None


def _needs(check: Checking, key: str, signature: Signature) -> None:
    if "loss" not in signature.decorators:
        return
    for name in signature.positional:
        try:
            parse_need(name)
        except ValueError as error:
            check.fault(
                f"{check.typed(key, signature.handler)}: {error}",
                "a loss's positional parameters are the quantities it reads",
            )


def _method_args(check: Checking, signature: Signature) -> None:
    given = check.cfg.section("trainer.method_args")
    check.bind("trainer.method_args", given, signature, hyper_parameters(signature))
    for name in ("gamma", "alpha", *extra_terms(signature)):
        check.number(f"trainer.method_args.{name}", at_least=0)


def _sides(check: Checking, signature: Signature) -> None:
    """Each side that a loss reads needs a dataset, and alternates one that gives them."""
    if check.cfg.get("mode") != "unlearn" or check.broken & {"experiment", "data", "data/datasets"}:
        return
    sides = {
        name.removeprefix("ref_").split("_")[0] for loss in losses_of(check.cfg) for name in loss.positional
    }
    for side in sorted(sides & {"forget", "retain"}):
        if not check.cfg.section(f"data.{side}"):
            check.fault(
                f"data.{side} is empty, and {signature.name} reads it",
                f"choose a dataset: data/datasets@data.{side}=NAME",
            )
    handlers = [
        node.get("handler") for node in check.cfg.section("data.forget").values() if isinstance(node, dict)
    ]
    if "alternate" in sides and handlers and all(handler in WITHOUT_ALTERNATES for handler in handlers):
        _no_alternates(check, signature)


def _no_alternates(check: Checking, signature: Signature) -> None:
    """The fault of alternates that are read and not there; where a further term alone reads them, it can be left out."""
    text = f"{check.typed('trainer', signature.name)}: {signature.name} reads alternate answers, and data.forget has none"
    readers = [
        key
        for key, term in extra_terms(signature).items()
        if any("alternate_" in name for name in term.positional)
    ]
    if any("alternate_" in name for name in signature.positional) or not readers:
        check.fault(text, "choose experiment=unlearn/tofu/idk, or data/datasets@data.forget=TOFU_QA_idk")
        return
    check.fault(
        text,
        "write them with `expunge alternates --novice-of CONCEPT --output FILE`, and name the file:"
        " data/datasets@data.forget=TOFU_QA_forget_altpo data.forget.TOFU_QA_forget_altpo.args.alternate_path=FILE;"
        f" or do without the term: trainer.method_args.{readers[0]}=0",
    )


def _retain(check: Checking) -> None:
    node = check.cfg.get("trainer.method_args.retain")
    if node is None or node == "none":
        return
    if not isinstance(node, dict) or "handler" not in node:
        text = check.typed("trainer.method_args.retain", node)
        check.fault(
            f"{text}: a retain term is a choice of the group retain",
            "write retain=nll, retain=kl or retain=none",
        )
        return
    if node["handler"] in (None, "none"):
        return
    key = "trainer.method_args.retain"
    signature = check.signature(f"{key}.handler", node["handler"])
    if signature is not None:
        _needs(check, f"{key}.handler", signature)
        check.bind(
            key,
            {name: value for name, value in node.items() if name != "handler"},
            signature,
            signature.keyword,
        )


def _by_name(check: Checking, name: str) -> None:
    """A schedule or combination: null, a short name, a handler, or {handler, ...keyword arguments}."""
    key = f"trainer.method_args.{name}"
    node = check.cfg.get(key)
    handler, given = (node.get("handler"), node) if isinstance(node, dict) else (node, {})
    short = (*read_names(*BY_NAME[name]), "sum" if name == "combine" else "none")
    if handler is None or handler in short:
        return
    if not isinstance(handler, str) or ":" not in handler:
        near = nearest(str(handler), short, count=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        check.fault(
            f"{check.typed(key, handler)}: there is no such {name}",
            f"{hint}known: {', '.join(short)}, or module:function",
        )
        return
    signature = check.signature(f"{key}.handler", handler)
    if signature is not None:
        check.bind(
            key,
            {item: value for item, value in given.items() if item != "handler"},
            signature,
            signature.keyword,
        )


def _training_arguments(check: Checking) -> None:
    args = check.cfg.section("trainer.args")
    names = training_arguments()
    if names:
        check.known("trainer.args", args, (*names, *OWN_ARGS), "TrainingArguments")
    check.number("trainer.args.learning_rate", above=0)
    if not (isinstance(args.get("max_steps"), int) and args["max_steps"] > 0):
        check.number("trainer.args.num_train_epochs", above=0)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        check.number(f"trainer.args.{name}", above=0, whole=True)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        check.number(f"trainer.args.{name}", above=0)
    for name in ("warmup_epochs", "warmup_steps", "weight_decay", "max_grad_norm"):
        check.number(f"trainer.args.{name}", at_least=0)
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        _strategy(check, name, args.get(name))
    _checkpoint(check, args.get("resume_from_checkpoint"))


def _strategy(check: Checking, name: str, value: Any) -> None:
    # YAML reads an unquoted `no` as false; hydra's command line does not.
    if value is not None and value is not False and value not in STRATEGIES:
        check.fault(
            f"{check.typed(f'trainer.args.{name}', value)}: not a strategy", f"known: {', '.join(STRATEGIES)}"
        )


def _checkpoint(check: Checking, value: Any) -> None:
    if not isinstance(value, str) or value.lower() in ("true", "false"):
        return
    path = Path(value).expanduser()
    text = check.typed("trainer.args.resume_from_checkpoint", value)
    if not path.is_dir():
        check.fault(
            f"{text}: no such folder", f"looked for {path.resolve()}; a checkpoint is saves/.../checkpoint-N"
        )
