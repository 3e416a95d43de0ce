"""How the work of a run is split over processes, in one value that all other code uses.

Rows are distributed by (`dp_rank`, `dp_size`). Code that must know whether a rank has the whole weights, or
whether a forward pass needs all ranks, uses this value and never the class of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.models.adapters import is_adapted, save_model
from expunge.models.outputs import unwrapped
from expunge.models.progress_bars import no_progress_bar

T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """How the work is split.

    Attributes:
        kind: "single" = one process; "ddp" = each process has the whole model and a part of the rows; "fsdp2"
            = each process also has only a part of the weights.
        dp_rank: part of the rows for this process, from 0.
        dp_size: number of parts.
        device: device of this process.
        split: splits the weights of a model in place; None = they stay whole.
    """

    kind: Literal["single", "ddp", "fsdp2"]
    dp_rank: int
    dp_size: int
    device: torch.device
    split: Callable[[nn.Module], object] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def here(cls, device: torch.device | None = None) -> Parallel:
        """The value for whole models in the current process group, or in a single process without one."""
        where = runtime.device() if device is None else device
        size = runtime.world_size()
        return cls("ddp" if size > 1 else "single", runtime.rank(), size, where)

    @classmethod
    def of(cls, model: nn.Module) -> Parallel:
        """The value for a model whose weights may have been split."""
        first = next(model.parameters(), None)
        whole = cls.here(None if first is None else first.device)
        # Not by the type of its weights: after a forward pass some are gathered.
        split = isinstance(unwrapped(model), FSDPModule)
        return replace(whole, kind="fsdp2", device=runtime.device()) if split else whole

    @classmethod
    def alone(cls) -> Parallel:
        """The value for one process, whatever others there are."""
        return cls("single", 0, 1, runtime.device())

    @property
    def sharded(self) -> bool:
        """Whether weights are split, so that a forward or backward pass needs all processes."""
        return self.kind == "fsdp2"

    def shard(self, model: nn.Module) -> None:
        """Split the weights of a model over the processes, in place; no effect if that is done, or not asked.

        All processes call this with the same model, on the CPU. The weights move to the device.
        """
        if self.split is not None:
            self.split(model)
            if is_adapted(model):
                # peft's `generate` goes past the outer module, which gathers what no layer owns.
                register_fsdp_forward_method(model, "generate")

    def reshard(self, model: nn.Module) -> None:
        """Free the gathered weights that a forward pass without a backward pass leaves.

        Until then `parameters()` has gathered weights for split ones, and an optimizer would update those.
        """
        if self.sharded:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    @property
    def is_first(self) -> bool:
        """Whether this process is the first; it alone writes shared files."""
        return self.dp_rank == 0

    def all_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on the device of this process."""
        value = value.to(self.device)
        if self.dp_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until all processes call this."""
        if self.dp_size > 1:
            torch.distributed.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return self.all_sum(value) / self.dp_size if self.dp_size > 1 else value

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process: every n-th item, n = number of processes.

        If a forward pass needs all processes, each gets equally many: the last items may come twice.
        """
        own = items[self.dp_rank :: self.dp_size]
        missing = self.sharded and len(own) < math.ceil(len(items) / self.dp_size)
        return [*own, items[-1]] if missing else own

    def merged(self, found: Mapping[int, T]) -> dict[int, T]:
        """The union of the mappings of all processes, on every process."""
        return {key: value for part in runtime.gathered(dict(found)) for key, value in part.items()}

    def weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The whole weights on the CPU of the first process, {} on the others; None = the model has them.

        Every process must call this. Of a model with an adapter, only trained weights are gathered.
        """
        if not self.sharded:
            return None
        return each_once(unwrapped(model), full_state_dict=True, cpu_offload=True)

    def save(
        self,
        model: nn.Module,
        folder: Path,
        tokenizer: Any = None,
        *,
        merge: bool = False,
        writes: bool | None = None,
    ) -> None:
        """Save a model, or only its adapter, for `from_pretrained`; every process must call this.

        Args:
            model: the trained model, wrapped or not.
            folder: target folder; the first process writes it.
            tokenizer: saved beside the weights.
            merge: see `models.adapters.save_model`.
            writes: whether this process writes the files; None = only the first process writes.

        Raises:
            UserError: the adapter cannot be merged.
        """
        inner, weights = unwrapped(model), self.weights(model)
        saved = [value for value in inner.parameters() if value.requires_grad or not is_adapted(inner)]
        expected = sum(value.numel() for value in saved)
        if self.is_first if writes is None or self.sharded else writes:
            with no_progress_bar():
                if tokenizer is not None:
                    tokenizer.save_pretrained(str(folder))
                save_model(inner, folder, merge=merge, **({} if weights is None else {"state_dict": weights}))
            check_saved(folder, expected)


def each_once(model: nn.Module, **options: Any) -> dict[str, Any]:
    """The weights by name, of a model with an adapter only the trained ones.

    A weight that has several names is there under the first.

    Args:
        model: not wrapped; its weights may be split.
        **options: of torch's `StateDictOptions`.
    """
    names = {name for name, _ in model.named_parameters()}
    others = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    options = {"ignore_frozen_params": is_adapted(model), **options}
    found = get_model_state_dict(model, options=StateDictOptions(**options))
    return {name: value for name, value in found.items() if name not in others}


def check_saved(folder: Path, expected: int) -> None:
    """Read back the headers of saved weights, and compare the number of values with that of the model.

    Names are not compared: `save_pretrained` gives some models the names of their original files.

    Args:
        folder: with the files that `save_pretrained` wrote.
        expected: values of the model's weights; a weight with several names counts once.

    Raises:
        UserError: values are missing.
    """
    found = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if found < expected:
        raise UserError(
            f"the weights saved in {folder} are incomplete: {found} values instead of {expected}",
            "the run was not marked complete; check the disk, and run the same command again",
        )
