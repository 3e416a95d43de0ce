"""The unlearning procedure of a run, as given in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.core.binding import Binder, Bound
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.handlers import Signature, read_signature

HANDLER, ARGS = "procedure.handler", "procedure.args"
"""The keys of the handler and of its arguments; the procedure is bound at `ARGS`."""

FINAL = "final"
"""The name of the stage that trains the run's own model."""


def find_procedure(binder: Binder, handler: Any) -> Signature | None:
    """The signature of a procedure; for anything else None, and a fault is recorded."""
    signature = binder.find(HANDLER, handler, {}, "procedure")
    if signature is not None and "procedure" not in signature.decorators:
        text = binder.typed(HANDLER, signature.handler)
        binder.fault(f"{text} is not a procedure", "`expunge ls procedures` lists them")
        return None
    return signature


def bind_procedure(binder: Binder, handler: Any, args: Mapping[str, Any]) -> Bound | None:
    """Bind `procedure.args` to a procedure; None if there is a fault, which is recorded."""
    signature = find_procedure(binder, handler)
    return None if signature is None else binder.bind(ARGS, signature, args)


def stages_of(cfg: Config) -> dict[str, str]:
    """The training stages of the procedure, stage -> side; empty without a procedure that can be read."""
    handler = cfg.get(HANDLER)
    try:
        signature = read_signature(handler) if isinstance(handler, str) else None
    except UserError:
        return {}
    return dict(signature.decorators.get("procedure", {}).get("stages", {})) if signature else {}
