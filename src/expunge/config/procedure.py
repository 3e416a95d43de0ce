"""The unlearning procedure of a run, as given in the configuration, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.config.adapter import ADAPTER_FILE
from expunge.config.checks.checking import Checking
from expunge.config.trainer_args import check_values
from expunge.core.annotations import Type
from expunge.core.binding import Binder
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.handlers import Signature, read_signature

HANDLER, ARGS = "procedure.handler", "procedure.args"
"""The keys of the handler and of its arguments; the procedure is bound at `ARGS`."""

FINAL = "final"
"""The name of the stage that trains the run's own model."""


KEYS = ("handler", "args", "keep_stages")
LOSS = "expunge.methods.finetune:finetune"
"""The loss of every stage."""


def find_procedure(binder: Binder, handler: Any) -> Signature | None:
    """The signature of a procedure; for anything else None, and a fault is recorded."""
    signature = binder.find(HANDLER, handler, {}, "procedure")
    if signature is not None and "procedure" not in signature.decorators:
        hint = "`expunge ls procedures` lists them"
        binder.fault(f"{binder.typed(HANDLER, signature.handler)} is not a procedure", hint)
        return None
    return signature


def stages_of(cfg: Config) -> dict[str, str]:
    """The training stages of the procedure, stage -> side; empty without a procedure that can be read."""
    handler = cfg.get(HANDLER)
    try:
        signature = read_signature(handler) if isinstance(handler, str) else None
    except UserError:
        return {}
    return dict(signature.decorators.get("procedure", {}).get("stages", {})) if signature else {}


def check_procedure(check: Checking) -> None:
    """Check everything about a procedure that is known before loading."""
    node = check.cfg.get("procedure")
    if not isinstance(node, dict):
        check.refuse("procedure", node, "this is a choice of the group procedure", f"write procedure={node}")
        return
    if check.cfg.get("mode") != "unlearn":
        check.fault(
            f"procedure is given, and mode is {check.cfg.get('mode')}",
            "procedures are only for `expunge unlearn`: leave the key out",
        )
    check.known("procedure", node, KEYS, "a procedure")
    check.check("procedure.keep_stages", node.get("keep_stages", False), Type("bool"))
    signature = find_procedure(check, node.get("handler"))
    if signature is None:
        return
    _args(check, signature)
    if not check.broken & {"experiment", "data", "data/datasets"}:
        for side in signature.positional[1:]:
            check.side_is_there(side, signature.name)
    _unused(check, signature)
    if check.cfg.get("model.adapter.type") == "qlora" and set(stages_of(check.cfg)) - {"final"}:
        reason = f"{signature.name} compares models, and only one of them would be in 4 bits"
        check.fault(f"model/adapter=qlora: {reason}", "use model/adapter=lora or none")
    if signature.decorators["procedure"].get("whole_model"):
        _whole_model(check, signature)


def _args(check: Checking, signature: Signature) -> None:
    given, about = check.cfg.section(ARGS), signature.decorators["procedure"]
    check.bind(ARGS, signature, given)
    for stage in about.get("stages", {}):
        if stage in signature.keyword and isinstance(given.get(stage), Mapping):
            check_values(check, f"{ARGS}.{stage}", given[stage])


def _unused(check: Checking, signature: Signature) -> None:
    """Report settings of a loss: a procedure would ignore them silently."""
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
        check.refuse(f"trainer.method_args.{name}", value, f"{stages}, which does not use it", hint)
    mask = check.cfg.get("trainer.mask")
    if isinstance(mask, dict) and (mask.get("handler") or mask.get("path")):
        text = f"trainer.mask is given: {stages} and trains all weights"
        check.fault(text, "leave out the mask, or the procedure")


def _whole_model(check: Checking, signature: Signature) -> None:
    """Check that a procedure that computes with weights gets whole models."""
    adapter = check.cfg.section("model.adapter")
    folder = Path(str(check.cfg.get("model.model_args.pretrained_model_name_or_path"))).expanduser()
    reason = f"{signature.name} computes with whole weights"
    if adapter.get("path") is not None:
        hint = "merge the adapter first: expunge train ... model.adapter.merge=true"
        reason_here = f"{reason}, and a model with an existing adapter has none"
        check.refuse("model.adapter.path", adapter["path"], reason_here, hint)
    if (folder / ADAPTER_FILE).is_file():
        check.fault(f"{folder} is an adapter: {reason}", "give a model with the adapter merged into it")
