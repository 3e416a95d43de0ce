"""How the work of a run is split over processes, in one value that all other code uses.

Rows are distributed by (`dp_rank`, `dp_size`). Code that must know whether a rank has the whole weights, or
whether a forward pass needs all ranks, uses this value and never the class of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.models.adapters import save_model
from expunge.models.outputs import unwrapped
from expunge.models.progress_bars import no_progress_bar

Kind = Literal["single", "ddp"]
T = TypeVar("T")


@dataclass(frozen=True)
class Parallel:
    """How the work is split.

    Attributes:
        kind: "single" = one process; "ddp" = each process has the whole model and a part of the rows.
        dp_rank: part of the rows for this process, from 0.
        dp_size: number of parts.
        device: device of this process.
        forwards_are_collective: whether a forward pass needs all processes, so that all must run the same
            number of forward passes. False for both kinds.
    """

    kind: Kind
    dp_rank: int
    dp_size: int
    device: torch.device
    forwards_are_collective: bool = False

    @classmethod
    def here(cls, device: torch.device | None = None) -> Parallel:
        """The value for the current process group; a single process without a group."""
        where = runtime.device() if device is None else device
        size = runtime.world_size()
        return cls("ddp" if size > 1 else "single", runtime.rank(), size, where)

    @classmethod
    def alone(cls) -> Parallel:
        """The value for one process, whatever others there are."""
        return cls("single", 0, 1, runtime.device())

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
        """The items of this process: every n-th item, n = number of processes."""
        return items[self.dp_rank :: self.dp_size]

    def merged(self, found: Mapping[int, T]) -> dict[int, T]:
        """The union of the mappings of all processes, on every process."""
        return {key: value for part in runtime.gathered(dict(found)) for key, value in part.items()}

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """While open, the unwrapped model, with all its weights on this process."""
        yield unwrapped(model)

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
        with self.whole(model) as inner, no_progress_bar():
            if self.is_first if writes is None else writes:
                if tokenizer is not None:
                    tokenizer.save_pretrained(str(folder))
                save_model(inner, folder, merge=merge)


def refuse_sharding(distributed_type: str) -> None:
    """Refuse an engine that splits the weights over processes.

    Args:
        distributed_type: accelerate's name of the engine, such as MULTI_GPU.

    Raises:
        UserError: the engine is neither a single process nor DDP.
    """
    if distributed_type not in (
        "NO",
        "MULTI_CPU",
        "MULTI_GPU",
        "MULTI_XPU",
        "MULTI_NPU",
        "MULTI_MLU",
        "MULTI_HPU",
    ):
        raise UserError(
            f"accelerate runs this as {distributed_type}, which splits the weights over processes",
            "this version trains only in one process or with DDP: use `torchrun --nproc_per_node N`, or"
            " `accelerate launch --multi_gpu --num_processes N`",
        )
