"""The engine that splits the work of a run over processes: group `parallel`, or what a launcher asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expunge.core.errors import Fault, UserError

KEY = "parallel"
USE_FSDP = "ACCELERATE_USE_FSDP"
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Variables of `accelerate launch` that ask for an engine without support -> its name."""
UNSHARDED = "use parallel=ddp, or one process"


@dataclass(frozen=True)
class Engine:
    """How several processes share a run. With one process, every engine is that process alone.

    Attributes:
        kind: "ddp" = each process has the whole model; "fsdp2" = the weights, gradients and optimizer states
            are split over the processes (torch's `fully_shard`), and gathered layer by layer.
        cpu_offload: keep the split weights and states in host memory; only for fsdp2.
        reshard_after_forward: free gathered weights after the forward pass and gather them again in the
            backward pass; false needs more memory and sends less.
        layers: class names of the layers that are gathered one at a time; None = those that the model names.
    """

    kind: Literal["ddp", "fsdp2"] = "ddp"
    cpu_offload: bool = False
    reshard_after_forward: bool = True
    layers: Sequence[str] | None = None

    @property
    def sharded(self) -> bool:
        """Whether the weights are split over processes."""
        return self.kind == "fsdp2"


DDP = Engine()


def engine_of(section: Mapping[str, Any], environment: Mapping[str, str]) -> Engine:
    """The engine of the group `parallel`, else of the launcher, else DDP.

    Args:
        section: the configuration's section `parallel`; empty = not given.
        environment: environment variables, as `accelerate launch` sets them.

    Raises:
        UserError: the launcher asks for an engine without support, or for another one than the configuration.
    """
    faults = [
        Fault(f"the launcher asks for {name} ({variable}), which is not supported", UNSHARDED + " or fsdp2")
        for variable, name in REFUSED.items()
        if _true(environment, variable)
    ]
    launched = None
    if _true(environment, USE_FSDP):
        faults += _of_fsdp(environment)
        layers = environment.get("FSDP_TRANSFORMER_CLS_TO_WRAP") or None
        launched = Engine(
            "fsdp2",
            cpu_offload=_true(environment, "FSDP_OFFLOAD_PARAMS"),
            reshard_after_forward=_true(environment, "FSDP_RESHARD_AFTER_FORWARD", "true"),
            layers=None if layers is None else tuple(name.strip() for name in layers.split(",")),
        )
    asked = Engine(**section) if section else None
    if asked and launched and (asked.sharded, asked.cpu_offload) != (True, launched.cpu_offload):
        faults.append(
            Fault(
                f"parallel.kind={asked.kind} (cpu_offload={asked.cpu_offload}), but the launcher asks for"
                f" {launched.kind} (cpu_offload={launched.cpu_offload})",
                "leave `parallel` out, or leave the engine out of the launcher's configuration",
            )
        )
    if faults:
        raise UserError.of(faults)
    return asked or launched or DDP


def _of_fsdp(environment: Mapping[str, str]) -> list[Fault]:
    """The faults of the launcher's FSDP settings."""
    faults = []
    if environment.get("FSDP_VERSION", "1") != "2":
        faults.append(
            Fault("the launcher asks for FSDP version 1", "set fsdp_version: 2 in its configuration")
        )
    if _true(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
        faults.append(
            Fault(
                "the launcher asks for fsdp_activation_checkpointing",
                "leave it out, and set trainer.args.gradient_checkpointing=true",
            )
        )
    return faults


def _true(environment: Mapping[str, str], name: str, default: str = "false") -> bool:
    return environment.get(name, default).lower() in ("true", "1", "yes")
