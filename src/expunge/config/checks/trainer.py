"""Checks of the `trainer` section: the method and its arguments, the retain term, the TrainingArguments."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.stepping import check_stepping
from expunge.config.listeners import LISTENERS, bind_listeners
from expunge.config.method import KEY, RETAIN, bind_method, extra_terms, losses_of
from expunge.config.training_fields import refusals
from expunge.core.annotations import ANY, Type, read_type
from expunge.core.handlers import Signature, dataclass_fields
from expunge.core.source import definition

# Our keys of `trainer.args` beside those of TrainingArguments.
OWN_ARGS = ("warmup_epochs",)
# Our dataset handlers without alternate answers.
WITHOUT_ALTERNATES = ("expunge.data.datasets:qa", "expunge.data.datasets:text")


def check_trainer(check: Checking) -> None:
    """Check everything about the optimisation that is known before loading."""
    method_args = check.cfg.section(KEY)
    if isinstance(retain := method_args.get("retain"), str) and retain != "none":
        text = check.typed(RETAIN, retain)
        check.fault(
            f"{text}: a retain term is a choice of the group retain",
            "write retain=nll, retain=kl or retain=none",
        )
        method_args["retain"] = None
    own = bind_method(check, check.cfg.get("trainer.handler"), method_args, check.cfg.switches)
    # A procedure states which rows its stages read.
    if own is not None and check.cfg.get("procedure") is None:
        _sides(check, own.signature)
    _training_arguments(check)
    check_stepping(check)
    bind_listeners(check, check.cfg.get(LISTENERS))


@cache
def training_arguments() -> Mapping[str, Type]:
    """The types of the installed TrainingArguments by name, from source; transformers is not imported."""
    found = definition("transformers.training_args", "TrainingArguments")
    if found is None or not isinstance(found.node, ast.ClassDef):
        return {}
    fields = dataclass_fields(found.node)
    return {name: read_type(hint, found.module) for name, (_, hint) in fields.items()}


def _sides(check: Checking, signature: Signature) -> None:
    """Check that each side that a loss reads has a dataset, and that alternate answers exist if needed."""
    if check.cfg.get("mode") != "unlearn" or check.broken & {"experiment", "data", "data/datasets"}:
        return
    sides = {
        name.removeprefix("ref_").split("_")[0] for loss in losses_of(check.cfg) for name in loss.positional
    }
    for side in sorted(sides & {"forget", "retain"}):
        check.side_is_there(side, signature.name)
    handlers = [
        node.get("handler") for node in check.cfg.section("data.forget").values() if isinstance(node, dict)
    ]
    if "alternate" in sides and handlers and all(handler in WITHOUT_ALTERNATES for handler in handlers):
        _no_alternates(check, signature)


def _no_alternates(check: Checking, signature: Signature) -> None:
    """Report missing alternate answers. If only an extra term reads them, the term can be switched off."""
    typed = check.typed("trainer", signature.name)
    text = f"{typed}: {signature.name} reads alternate answers, and data.forget has none"
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
        "write them with `expunge alternates --novice-of CONCEPT --output FILE`, then give the file:"
        " data/datasets@data.forget=TOFU_QA_forget_altpo"
        " data.forget.TOFU_QA_forget_altpo.args.alternate_path=FILE;"
        f" or switch the term off: trainer.method_args.{readers[0]}=0",
    )


def _training_arguments(check: Checking) -> None:
    key, args, types = "trainer.args", check.cfg.section("trainer.args"), training_arguments()
    if types:
        check.known(key, args, (*types, *OWN_ARGS), "TrainingArguments")
    check.number(f"{key}.learning_rate", above=0)
    if not (isinstance(args.get("max_steps"), int) and args["max_steps"] > 0):
        check.number(f"{key}.num_train_epochs", above=0)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        check.number(f"{key}.{name}", above=0, whole=True)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        check.number(f"{key}.{name}", above=0)
    for name in ("warmup_epochs", "warmup_steps", "weight_decay", "max_grad_norm"):
        check.number(f"{key}.{name}", at_least=0)
    for name, value in args.items():
        _argument(check, f"{key}.{name}", value, types.get(name, ANY))
    for fault in refusals(args):
        check.fault(fault.message, fault.hint)
    _checkpoint(check, args.get("resume_from_checkpoint"))


def _argument(check: Checking, key: str, value: Any, hint: Type) -> None:
    """Check arguments of type bool, and arguments of an enumeration such as `optim`."""
    if choices := hint.choices():
        # YAML reads an unquoted `no` as false; hydra's command line does not.
        value = "no" if value is False and "no" in choices else value
        hint = Type("literal", choices)
    elif hint.kind != "bool":
        return
    if value is not None:
        check.check(key, value, hint)


def _checkpoint(check: Checking, value: Any) -> None:
    if not isinstance(value, str) or value.lower() in ("true", "false"):
        return
    path = Path(value).expanduser()
    text = check.typed("trainer.args.resume_from_checkpoint", value)
    if not path.is_dir():
        check.fault(
            f"{text}: no such folder", f"looked for {path.resolve()}; a checkpoint is saves/.../checkpoint-N"
        )
