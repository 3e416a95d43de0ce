"""What a training step holds in memory, found out without any: torch's trackers over fake tensors.

Written for torch 2.13 (`TORCH`). The trackers, fake tensors and the group of fake ranks are private modules
of torch, so only this file uses them. If they cannot be used, `why_not` says why, and the formulas of
`core.footprint` are used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

TORCH = "2.13"
"""The version of torch whose trackers these are."""
MODULES = (
    "torch._subclasses.fake_tensor",
    "torch.distributed._tools.mem_tracker",
    "torch.distributed._tools.fsdp2_mem_tracker",
)
# The trackers' own categories, and what they are here.
PARTS = {
    "Parameter": "weights",
    "Buffer": "weights",
    "Sharded Param": "weights",
    "Gradient": "gradients",
    "Sharded Grad": "gradients",
    "Optstate": "optimizer",
    "OptState": "optimizer",
    "Unsharded Param": "unsharded",
    "Unsharded Grad": "unsharded",
    "All Gather": "unsharded",
    "Reduce Scatter": "unsharded",
}
"""Whatever is not named here, activations and what a backward pass needs for a moment, is "activations"."""


def why_not() -> str:
    """Why the trackers cannot be used with the torch that is installed; empty where they can."""
    if not torch.__version__.startswith(f"{TORCH}."):
        return f"torch is {torch.__version__}, the trackers are used as those of {TORCH}"
    try:
        for name in MODULES:
            import_module(name)
    except ImportError as error:
        return f"torch {torch.__version__} lacks its trackers: {error}"
    return ""


@contextmanager
def fake_tensors() -> Iterator[Callable[[Tensor], Tensor]]:
    """While open, new tensors have a shape but no memory; yields a function that makes a tensor fake."""
    mode = import_module(MODULES[0]).FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode.from_tensor


@contextmanager
def fake_ranks(count: int) -> Iterator[Any]:
    """While open, a mesh of so many ranks; this process is the first one, the others do not exist."""
    torch.distributed.init_process_group(
        "fake", rank=0, world_size=count, store=import_module("torch.distributed").HashStore()
    )
    try:
        yield import_module("torch.distributed").init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Peak:
    """The most that was held at once, in bytes, by what it was held for.

    Attributes:
        parts: of the moment of the peak: weights, gradients, optimizer, activations, unsharded.
        passing: the most that "activations" was at the moments that `Watch.look` was called at.
    """

    parts: dict[str, int]
    passing: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())


class Watch:
    """Watches what is held, while it is entered.

    Args:
        held: modules, optimizers and tensors that are there before.
        sharded: the module whose weights are split over ranks, if any are.
    """

    def __init__(self, held: Sequence[Any], sharded: nn.Module | None = None) -> None:
        if sharded is None:
            self._tracker = _adapted(import_module(MODULES[1]).MemTracker)()
            self._tracker.track_external(*held)
        else:
            self._tracker = _adapted(import_module(MODULES[2]).FSDPMemTracker)(sharded)
        self._passing = 0
        self._roots = {id(item) for item in (*held, sharded) if isinstance(item, nn.Module)}

    def __enter__(self) -> Watch:
        # In front of the trackers' own hooks, which refuse a module that ran before as a whole.
        self._handle = register_module_forward_pre_hook(self._forget_pass)
        self._tracker.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tracker.__exit__(*error)
        self._handle.remove()

    def _forget_pass(self, module: nn.Module, _: Any) -> None:
        if id(module) in self._roots and module in self._tracker.memory_tracking:
            del self._tracker.memory_tracking[module]

    def look(self) -> None:
        """Take note of the activations that are alive now."""
        self._passing = max(
            self._passing, _parts(self._tracker.get_tracker_snapshot("current"))["activations"]
        )

    def peak(self) -> Peak:
        """The most that was held at once so far."""
        return Peak(_parts(self._tracker.get_tracker_snapshot("peak")), self._passing)


def _adapted(tracker: type[Any]) -> type[Any]:
    """A tracker for what is trained here.

    It stores no peaks of single modules, because this costs a loop over all modules at each operation. It
    puts no hook on frozen weights, because torch 2.13 cannot.
    """

    class Adapted(tracker):  # type: ignore[misc]
        memory_tracking: Any

        def _update_peak_stats(self, peak_state: Any) -> None:
            by_module, self.memory_tracking = self.memory_tracking, {}
            super()._update_peak_stats(peak_state)
            self.memory_tracking = by_module

        def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
            trained = all(parameter.requires_grad for parameter in module.parameters())
            return super()._track_module_params_and_buffers(module, install_grad_hooks and trained)

    return Adapted


def _parts(snapshot: dict[torch.device, dict[Any, int]]) -> dict[str, int]:
    found = dict.fromkeys([*dict.fromkeys(PARTS.values()), "activations"], 0)
    for by_category in snapshot.values():
        for category, size in by_category.items():
            name = getattr(category, "value", category)
            if name != "Total":
                found[PARTS.get(name, "activations")] += size
    return found


def shard(model: nn.Module, units: Sequence[Any], mesh: Any, compute_dtype: torch.dtype) -> nn.Module:
    """Split a model's weights over the ranks of a mesh, as accelerate does for FSDP2.

    Args:
        model: its weights are whole so far; changed in place.
        units: modules, or lists of them, that are gathered one after the other.
        mesh: of `fake_ranks`.
        compute_dtype: that weights are gathered in; gradients are exchanged in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model
