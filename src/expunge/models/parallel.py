"""How the work of a run is split over processes, as one value that everything else asks.

Rows are dealt by (`dp_rank`, `dp_size`). Whoever has to know whether the weights of a rank are whole, or whether a
forward pass takes all ranks, asks this value and never the class of a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.models.adapters import save_model
from expunge.models.outputs import unwrapped
from expunge.models.progress_bars import no_progress_bar

Kind = Literal["single", "ddp"]


@dataclass(frozen=True)
class Parallel:
    """How the work is split.

    Attributes:
        kind: "single" = one process; "ddp" = each process has the whole model and a part of the rows.
        dp_rank: which part of the rows this process gets, from 0.
        dp_size: in how many parts the rows are dealt.
        device: of this process.
        forwards_are_collective: whether a forward pass takes all processes, so that each must make as many as the
            others. False for both kinds that there are.
    """

    kind: Kind
    dp_rank: int
    dp_size: int
    device: torch.device
    forwards_are_collective: bool = False

    @classmethod
    def here(cls, device: torch.device | None = None) -> Parallel:
        """Of the processes that have met, which are one where none have."""
        where = runtime.device() if device is None else device
        size = runtime.world_size()
        return cls("ddp" if size > 1 else "single", runtime.rank(), size, where)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.dp_rank == 0

    def all_sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all parts of the rows, on this process's device."""
        value = value.to(self.device)
        if self.dp_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.dp_size > 1:
            torch.distributed.barrier()

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model, not wrapped, with all its weights whole on this process while open."""
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
        """Save a model, or its adapter alone, so that `from_pretrained` reads it; every process calls it.

        Args:
            model: as trained, wrapped or not.
            folder: filled by the first process.
            tokenizer: saved beside the weights.
            merge: see `models.adapters.save_model`.
            writes: whether this process writes the files; None = the first does.

        Raises:
            UserError: an adapter that cannot be merged.
        """
        with self.whole(model) as inner, no_progress_bar():
            if self.is_first if writes is None else writes:
                if tokenizer is not None:
                    tokenizer.save_pretrained(str(folder))
                save_model(inner, folder, merge=merge)


def refuse_sharding(distributed_type: str) -> None:
    """Refuse an engine that splits the weights over processes.

    Args:
        distributed_type: accelerate's name of what came up, such as MULTI_GPU.

    Raises:
        UserError: it is not one process or DDP.
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
            "this version trains in one process or under DDP: use `torchrun --nproc_per_node N`, or"
            " `accelerate launch --multi_gpu --num_processes N`",
        )
