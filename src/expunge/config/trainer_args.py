"""Checks of `trainer.args` that need nothing else: names, types, ranges, and values that do not fit together.

Validation and the run call the same functions. transformers is read from source and not imported.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from expunge.config.optimizer_names import check_optimizer
from expunge.config.schedulers import EVALUATED, check_scheduler
from expunge.config.training_fields import CHOICES, OWN, range_of, refusals
from expunge.core.annotations import Type, read_type
from expunge.core.binding import Binder
from expunge.core.errors import nearest
from expunge.core.handlers import dataclass_fields, literal
from expunge.core.source import definition

KEY = "trainer.args"
EXAMPLES = {"learning_rate": "1e-5", "per_device_train_batch_size": "4", "gradient_accumulation_steps": "4"}
ADVICE = {
    "max_steps": "leave it out to train num_train_epochs",
    "eval_strategy": "quote no in a YAML file",
    "save_strategy": "quote no in a YAML file",
}
WORKERS = (
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "dataloader_multiprocessing_context",
)
"""Fields that are for the loader's worker processes."""

WORDS: dict[str, tuple[str, ...]] = {"report_to": (), "debug": ("underflow_overflow", "tpu_metrics_debug")}
"""Fields with several choices; those of `report_to` are read from transformers."""


@cache
def argument_types() -> Mapping[str, Type]:
    """The type of each valid key; empty if the source of transformers is not found."""
    found = definition("transformers.training_args", "TrainingArguments")
    if found is None or not isinstance(found.node, ast.ClassDef):
        return {}
    hints = {name: hint for name, (_, hint) in dataclass_fields(found.node).items()}
    types = {name: _narrowed(name, read_type(hint, found.module)) for name, hint in hints.items()}
    return types | {name: _narrowed(name, Type("union", (Type("float"), Type("None")))) for name in OWN}


def check_values(binder: Binder, key: str, args: Mapping[str, Any]) -> None:
    """Check each value alone: its name, type and range, and whether this package supports it."""
    types = argument_types()
    for name, value in args.items():
        if types and name not in types:
            near = nearest(name, list(types), count=3)
            known = f"known: {', '.join(sorted(types))}"
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else known
            binder.fault(f"{binder.typed(f'{key}.{name}', value)}: TrainingArguments has no {name!r}", hint)
    refused = refusals(args)
    for fault in refused:
        binder.fault(fault.message, fault.hint)
    # With max_steps, the number of epochs is not used.
    unused = {"num_train_epochs"} if _is_above(args.get("max_steps"), 0) else set()
    for name in [name for name in args if name in types and name not in unused]:
        _check_value(binder, f"{key}.{name}", name, args[name], types[name])


def check_together(binder: Binder, key: str, args: Mapping[str, Any], *, evaluates: bool = True) -> None:
    """Check values that depend on each other.

    Args:
        binder: receives the faults.
        key: the key of the arguments.
        args: the arguments; values that are wrong alone are reported elsewhere.
        evaluates: whether the training evaluates; else the settings of evaluation are not used.
    """

    def fault(name: str, reason: str, hint: str) -> None:
        binder.fault(f"{binder.typed(f'{key}.{name}', args.get(name))}: {reason}", hint)

    for name, default in (("logging", "steps"), ("eval", "no"), ("save", "steps")):
        steps = args.get(f"{name}_steps")
        if (
            args.get(f"{name}_strategy", default) == "steps"
            and isinstance(steps, float)
            and steps > 1
            and steps % 1
        ):
            fault(
                f"{name}_steps",
                "steps above 1 are whole",
                f"for example {int(steps)}, or a share of the run below 1",
            )
    for first, second in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if args.get(first) is True and args.get(second) is True:
            fault(first, f"{second}=true is given as well", "give one of the two")
    for name in WORKERS:
        if args.get(name) and not _is_above(args.get("dataloader_num_workers", 0), 0):
            fault(
                name,
                "it is for worker processes, and there are none",
                f"add {key}.dataloader_num_workers=2, or leave it out",
            )
    check_optimizer(binder, key, args)
    check_scheduler(binder, key, args)
    if evaluates:
        _check_evaluation(binder, key, args)


def _check_evaluation(binder: Binder, key: str, args: Mapping[str, Any]) -> None:
    def typed(name: str) -> str:
        return binder.typed(f"{key}.{name}", args.get(name))

    evaluates, saves = (
        str(args.get(f"{name}_strategy", default)) for name, default in (("eval", "no"), ("save", "steps"))
    )
    metric, never = args.get("metric_for_best_model"), evaluates in ("no", "False")
    hint = f"add {key}.eval_strategy=steps {key}.eval_steps=N"
    if (kind := args.get("lr_scheduler_type")) in EVALUATED and never:
        binder.fault(
            f"{typed('lr_scheduler_type')}: {kind} follows a metric, and the run is not evaluated", hint
        )
    if saves == "best" and metric is None:
        binder.fault(
            f"{typed('save_strategy')}: it needs a metric",
            f"give {key}.metric_for_best_model and {key}.eval_strategy",
        )
    elif saves == "best" and never:
        binder.fault(f"{typed('save_strategy')}: the run is not evaluated", hint)
    if args.get("load_best_model_at_end") is not True or saves == "best":
        return
    if evaluates != saves:
        binder.fault(
            f"{typed('load_best_model_at_end')}: the save and eval strategy differ,"
            f" save_strategy={saves} and eval_strategy={evaluates}",
            f"give both the same value, or {key}.save_strategy=best",
        )
    elif evaluates == "steps":
        _check_steps(binder, key, args, typed("load_best_model_at_end"))


def _check_steps(binder: Binder, key: str, args: Mapping[str, Any], typed: str) -> None:
    """Check that each checkpoint is evaluated."""
    every, save = args.get("eval_steps") or args.get("logging_steps", 500), args.get("save_steps", 500)
    if not (_is_above(every, 0) and _is_above(save, 0)):
        return
    mixed = (every < 1) != (save < 1)
    # As in transformers: shares are compared as whole numbers of millionths.
    if mixed or (save * 1_000_000) % (every * 1_000_000):
        reason = "one is a share of the run" if mixed else f"{save} is not a multiple of {every}"
        steps = f"with save_steps={save} and eval_steps={every}, {reason}"
        hint = f"give {key}.save_steps={every}"
        binder.fault(f"{typed}: each checkpoint must be evaluated, {steps}", hint)


def _check_value(binder: Binder, key: str, name: str, value: Any, hint: Type) -> None:
    # YAML reads an unquoted `no` as false; hydra's command line does not.
    value = "no" if value is False and "no" in hint.choices() else value
    if value == [] and any(member.kind == "list" for member in _members(hint)):
        return
    if _mapping_as_json(value, hint):
        return
    if value is None and hint.kind in ("bool", "any"):
        return
    if name in WORDS and isinstance(value, str | list):
        _check_words(binder, key, name, value)
        return
    example = EXAMPLES.get(name)
    advice = ADVICE.get(name, f"for example {key}={example}" if example else "leave it out for the default")
    binder.check(key, value, _without_null(hint) if value is not None else hint, advice)


def _check_words(binder: Binder, key: str, name: str, value: str | list[Any]) -> None:
    """Check a list of choices, also given as one string."""
    choices = _loggers() if name == "report_to" else WORDS[name]
    words = value if isinstance(value, list) else value.split() if name == "debug" else [value]
    if name == "report_to" and len(words) == 1:
        choices = ("none", "all", *choices)
    for word in words:
        binder.check(key, word, Type("literal", choices))


def _narrowed(name: str, hint: Type) -> Type:
    """A field's type with what the table and the enumerations state about it."""
    null = (Type("None"),) if any(member.kind == "None" for member in _members(hint)) else ()
    if choices := CHOICES.get(name) or hint.choices():
        hint = Type("union", (Type("literal", choices), *null)) if null else Type("literal", choices)
    if name == "debug":
        return Type("union", (Type("str"), Type("list", (Type("str"),)), Type("None")))
    if name == "resume_from_checkpoint":
        return Type("union", (Type("str"), Type("bool"), Type("None")))
    for range_name, bound in range_of(name):
        hint = hint.with_range(range_name, bound)
    return hint


def _mapping_as_json(value: Any, hint: Type) -> bool:
    """Whether a string is a JSON object, which transformers accepts instead of a mapping."""
    if not isinstance(value, str) or not any(member.kind == "mapping" for member in _members(hint)):
        return False
    try:
        return isinstance(json.loads(value), dict)
    except ValueError:
        return False


def _without_null(hint: Type) -> Type:
    """The type without null, and without strings where a mapping is wanted: messages name what is useful."""
    members = [member for member in _members(hint) if member.kind != "None"]
    if any(member.kind == "mapping" for member in members):
        members = [member for member in members if member.kind != "str"]
    return members[0] if len(members) == 1 else Type("union", tuple(members))


def _members(hint: Type) -> tuple[Type, ...]:
    return hint.args if hint.kind == "union" else (hint,)


def _loggers() -> tuple[str, ...]:
    """The loggers that transformers knows."""
    found = definition("transformers.integrations.integration_utils", "INTEGRATION_TO_CALLBACK")
    keys = found.node.keys if found is not None and isinstance(found.node, ast.Dict) else []
    return tuple(str(literal(item)) for item in keys if item is not None)


def _is_above(value: Any, bound: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > bound
