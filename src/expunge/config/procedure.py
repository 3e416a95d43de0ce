"""The unlearning procedure of a run as the configuration states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.binding import Binder, Bound
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.handlers import Signature, read_signature

HANDLER, ARGS = "procedure.handler", "procedure.args"
"""The second is where the procedure is bound."""


def find_procedure(binder: Binder, handler: Any) -> Signature | None:
    """The signature of a procedure; None, with a fault noted, for anything else."""
    signature = binder.find(HANDLER, handler, {}, "procedure")
    if signature is not None and "procedure" not in signature.decorators:
        text = binder.typed(HANDLER, signature.handler)
        binder.fault(f"{text} is not a procedure", "`expunge ls procedures` names them")
        return None
    return signature


def bind_procedure(binder: Binder, handler: Any, args: Mapping[str, Any]) -> Bound | None:
    """Bind `procedure.args` to a procedure; None, with faults noted, where something is wrong."""
    signature = find_procedure(binder, handler)
    return None if signature is None else binder.bind(ARGS, signature, args)


def stages_of(cfg: Config) -> dict[str, str]:
    """The trainings of the configuration's procedure, stage -> side; empty where there is none or it cannot be read."""
    handler = cfg.get(HANDLER)
    try:
        signature = read_signature(handler) if isinstance(handler, str) else None
    except UserError:
        return {}
    return dict(signature.decorators.get("procedure", {}).get("stages", {})) if signature else {}
