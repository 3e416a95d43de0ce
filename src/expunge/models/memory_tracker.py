"""The memory of a training step, computed without using it: torch's trackers over fake tensors.

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
"""The version of torch with these trackers."""
MODULES = (
    "torch._subclasses.fake_tensor",
    "torch.distributed._tools.mem_tracker",
    "torch.distributed._tools.fsdp2_mem_tracker",
)
# The trackers' categories -> our parts.
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
"""All other categories (activations, temporary tensors of a backward pass) are "activations"."""


def why_not() -> str:
    """Why the trackers cannot be used with the installed torch; empty if they can."""
    if not torch.__version__.startswith(f"{TORCH}."):
        return f"torch is {torch.__version__}, the code for its trackers is for {TORCH}"
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
    distributed = import_module("torch.distributed")
    distributed.init_process_group("fake", rank=0, world_size=count, store=distributed.HashStore())
    try:
        yield distributed.init_device_mesh("cpu", (count,))
    finally:
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Peak:
    """The largest memory use, in bytes.

    Attributes:
        parts: its parts: weights, gradients, optimizer, activations, unsharded.
        passing: the largest "activations" at the calls of `Watch.look`.
    """

    parts: dict[str, int]
    passing: int


class Watch:
    """Tracks the memory use while it is entered.

    Args:
        held: modules, optimizers and tensors that exist before.
        sharded: the module whose weights are split over ranks; None = none.
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
        # Before the trackers' own hooks, which refuse a second forward pass of a root module.
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
        """Record the current activations."""
        self._passing = max(
            self._passing, _parts(self._tracker.get_tracker_snapshot("current"))["activations"]
        )

    def peak(self) -> Peak:
        """The largest memory use so far."""
        return Peak(_parts(self._tracker.get_tracker_snapshot("peak")), self._passing)


def _adapted(tracker: type[Any]) -> type[Any]:
    """A tracker with two changes.

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
        model: has whole weights; changed in place.
        units: modules, or lists of modules, that are gathered one after the other.
        mesh: a mesh of `fake_ranks`.
        compute_dtype: dtype of gathered weights; gradients are exchanged in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return model
