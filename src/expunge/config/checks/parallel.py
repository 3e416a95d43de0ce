"""Checks of the engine that splits a run over processes: what cannot be computed on split weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from expunge.config.checks.checking import Checking
from expunge.config.method import COMBINE, NONE, loss_defaults, losses_of
from expunge.config.stepping import MASK, RULE
from expunge.core.engine import KEY, UNSHARDED, engine_of
from expunge.core.errors import UserError
from expunge.core.handlers import read_signature

ENGINE = "expunge.core.engine:Engine"
OPTIM = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
HANDLERS = ("expunge.optim.adamw:adamw", "expunge.optim.sgd:sgd")
"""Optimizers that update split weights; those of the user's own modules are not judged."""


def check_parallel(check: Checking) -> None:
    """Check the section `parallel`, the launcher's engine, and what split weights exclude."""
    section = check.cfg.get(KEY)
    if section is not None and not isinstance(section, Mapping):
        check.fault(
            f"{check.typed(KEY, section)}: not an engine", "choose parallel=ddp, fsdp2 or fsdp2_offload"
        )
        return
    bound = check.bind(KEY, read_signature(ENGINE), section or {})
    if bound is None:
        return
    try:
        check.engine = engine_of(section or {}, os.environ)
    except UserError as error:
        check.record(error.faults)
        return
    if check.engine.sharded:
        for text, hint in _excluded(check):
            check.fault(f"{text}, which fsdp2 splits", hint)


def _excluded(check: Checking) -> Iterator[tuple[str, str]]:
    """What needs whole weights, with what to do about it."""
    cfg = check.cfg
    if cfg.get(f"{MASK}.handler") or cfg.get(f"{MASK}.path"):
        yield "trainer.mask chooses among whole weights", f"leave the mask out, or {UNSHARDED}"
    for name, rule in (cfg.section(RULE) if isinstance(cfg.get(RULE), Mapping) else {}).items():
        if rule is not None:
            yield f"{RULE}.{name} needs whole weights", f"leave the rule out, or {UNSHARDED}"
    combine = cfg.get(COMBINE)
    if (combine.get("handler") if isinstance(combine, Mapping) else combine) not in (*NONE, "sum"):
        yield "trainer.method_args.combine compares whole gradients", UNSHARDED
    for loss in losses_of(cfg):
        if loss_defaults(loss).get("kind") == "model":
            yield f"{loss.name} reads whole weights", f"take another method, or {UNSHARDED}"
    optim = str(cfg.get("trainer.args.optim") or OPTIM[0])
    if optim not in OPTIM:
        yield f"trainer.args.optim={optim} reads whole weights", f"use one of {', '.join(OPTIM)}"
    handler = str(cfg.get("trainer.optimizer.handler") or "")
    if handler.startswith("expunge.") and handler not in HANDLERS:
        yield f"trainer.optimizer.handler={handler} reads whole weights", "use optimizer=adamw or sgd"
    if cfg.get("model.model_args.master_dtype") not in (None, "float32"):
        yield "model.model_args.master_dtype is float32 for weights", "leave the key out"
    if cfg.get("trainer.args.fp16") is True or cfg.get("model.model_args.torch_dtype") == "float16":
        yield "float16 scales the gradient of whole weights", "use model.model_args.torch_dtype=bfloat16"
    if cfg.get("trainer.args.save_on_each_node") is True:
        yield "trainer.args.save_on_each_node=true writes whole weights", "use storage that all nodes share"
    if cfg.get("model.adapter.type") == "qlora":
        yield "model/adapter=qlora keeps weights in 4 bits", f"use model/adapter=lora, or {UNSHARDED}"
    if cfg.get("model.adapter.merge") is True:
        yield "model.adapter.merge=true needs whole weights", "leave it out: the adapter alone is saved"
    if cfg.get("procedure") is not None:
        yield f"procedure={cfg.get('procedure.handler')} computes with whole weights", UNSHARDED
