"""Checks of the `procedure` section: the recipe, its hyper-parameters, and what a recipe of finetunings leaves no use for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.config.adapter import ADAPTER_FILE
from expunge.config.checks.checking import Checking
from expunge.config.procedure import ARGS, find_procedure, stages_of
from expunge.core.annotations import Type
from expunge.core.handlers import Signature

KEYS = ("handler", "args", "keep_stages")
LOSS = "expunge.methods.finetune:finetune"
"""What every stage minimises."""


def check_procedure(check: Checking, training_arguments: tuple[str, ...]) -> None:
    """Everything about a procedure that can be known before anything is loaded.

    Args:
        check: the validation under way.
        training_arguments: the names that a stage's own arguments may have.
    """
    node = check.cfg.get("procedure")
    if not isinstance(node, dict):
        check.fault(
            f"{check.typed('procedure', node)}: this is a choice of the group procedure",
            f"write procedure={node}",
        )
        return
    if check.cfg.get("mode") != "unlearn":
        check.fault(
            f"procedure is given, and mode is {check.cfg.get('mode')}",
            "procedures are of `expunge unlearn`: leave it out",
        )
    check.known("procedure", node, KEYS, "a procedure")
    check.check("procedure.keep_stages", node.get("keep_stages", False), Type("bool"))
    signature = find_procedure(check, node.get("handler"))
    if signature is None:
        return
    _args(check, signature, training_arguments)
    _sides(check, signature)
    _unused(check, signature)
    if check.cfg.get("model.adapter.type") == "qlora" and set(stages_of(check.cfg)) - {"final"}:
        reason = f"{signature.name} compares a stage's model with the start model, which would be the one in 4 bits, the other not"
        check.fault(f"model/adapter=qlora: {reason}", "take model/adapter=lora or none")
    if signature.decorators["procedure"].get("whole_model"):
        _whole_model(check, signature)


def _args(check: Checking, signature: Signature, training_arguments: tuple[str, ...]) -> None:
    given, about = check.cfg.section(ARGS), signature.decorators["procedure"]
    check.bind(ARGS, signature, given)
    for stage in about.get("stages", {}):
        if stage in signature.keyword and isinstance(given.get(stage), Mapping):
            _stage_args(check, f"{ARGS}.{stage}", given[stage], training_arguments)


def _stage_args(
    check: Checking, key: str, given: Mapping[str, Any], training_arguments: tuple[str, ...]
) -> None:
    if training_arguments:
        check.known(key, given, training_arguments, "TrainingArguments")
    for name in ("learning_rate", "num_train_epochs", "max_steps"):
        check.number(f"{key}.{name}", above=0)


def _sides(check: Checking, signature: Signature) -> None:
    """Each side that the procedure is given needs a data set."""
    if check.broken & {"experiment", "data", "data/datasets"}:
        return
    for side in signature.positional[1:]:
        check.side_is_there(side, signature.name)


def _unused(check: Checking, signature: Signature) -> None:
    """What was chosen for a loss would do nothing here without a word."""
    handler, stages = check.cfg.get("trainer.handler"), f"every stage of {signature.name} is finetuning"
    if "trainer" not in check.broken and handler != LOSS:
        typed = next(
            (text for text in check.cfg.overrides if text.partition("=")[0] == "trainer"),
            f"trainer.handler={handler}",
        )
        check.fault(
            f"{typed}: {stages}, so the method would not be used", "leave out the method, or the procedure"
        )
    elif given := check.cfg.section("trainer.method_args"):
        name, value = next(iter(given.items()))
        hint = f"did you mean procedure.args.{name}?" if name in signature.keyword else "leave it out"
        check.fault(
            f"{check.typed(f'trainer.method_args.{name}', value)}: {stages}, which has no such term", hint
        )
    mask = check.cfg.get("trainer.mask")
    if isinstance(mask, dict) and (mask.get("handler") or mask.get("path")):
        check.fault(f"a mask is chosen: {stages}, of all weights", "leave out mask, or the procedure")


def _whole_model(check: Checking, signature: Signature) -> None:
    """A procedure on weights needs them all, in full."""
    adapter = check.cfg.section("model.adapter")
    folder = Path(str(check.cfg.get("model.model_args.pretrained_model_name_or_path"))).expanduser()
    reason = f"{signature.name} computes with whole weights"
    if adapter.get("path") is not None:
        check.fault(f"{check.typed('model.adapter.path', adapter['path'])}: {reason}, and an adapter that is continued is no whole model",
                    "merge it first: expunge train ... model.adapter.merge=true")  # fmt: skip
    if (folder / ADAPTER_FILE).is_file():
        check.fault(f"{folder} is an adapter: {reason}", "give a model with the adapter merged in")
