"""The order of training rows: drawn from (seed, epoch), and split over ranks so that each row comes once.

The key of an item contains everything that the item depends on. So ranks, loader workers and resumed runs see
the same rows, whatever the global random state is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from expunge.core.files import write_json
from expunge.lm import runtime
from expunge.lm.labels import Batch, laid_out
from expunge.models.parallel import Parallel
from expunge.training.places import at_places

ORDER_FILE = "pairs/order.json"
Item = Any
"""What the dataset returns for one index: a dict of `Encoded` by side."""
Collate = Callable[[list[Item]], Batch]


class EpochDataset(Protocol):
    """A dataset that draws new pairs in each epoch, such as `data.pairs.PairedDataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Item: ...
    def set_epoch(self, epoch: int) -> None:
        """Draw the pairs of an epoch."""


class Key(NamedTuple):
    """Identifies one row of a micro-batch.

    Attributes:
        epoch: the epoch, from 0.
        row: its index in the dataset.
        counted: False for a filler: a row that counts nowhere, for a rank without a row at the end of an
            epoch.
    """

    epoch: int
    row: int
    counted: bool


class MicroBatch(TypedDict):
    """One micro-batch of one rank; the CPU knows all its label positions and counts.

    Keys:
        sides: the tensors by side, laid out (see `lm.labels.laid_out`).
        elsewhere: the same for losses that look at other places than the labels; by places.
        counted: one flag per row; a row that does not count is only part of the forward pass.
        counted_B: [B] bool, the same as a tensor, which moves with the batch.
    """

    sides: Batch
    elsewhere: dict[str, Batch]
    counted: Sequence[bool]
    counted_B: torch.Tensor


def micro_batch(
    sides: Batch, counted: Sequence[bool] | None = None, elsewhere: Mapping[str, Sequence[str]] | None = None
) -> MicroBatch:
    """Lay out a batch: find its labels, and those at other places that some loss looks at.

    Args:
        sides: as collated, on the CPU.
        counted: one flag per row; None = all count.
        elsewhere: other places than the labels -> the sides that some loss looks at there.
    """
    size = len(next(iter(sides.values()))["input_ids"])
    flags = [True] * size if counted is None else list(counted)
    counted_B = torch.tensor(flags, dtype=torch.bool)

    def laid(batch: Batch) -> Batch:
        return {name: laid_out(side, counted_B) for name, side in batch.items()}

    moved = {
        places: laid(at_places({name: sides[name] for name in names}, places))
        for places, names in (elsewhere or {}).items()
    }
    return {"sides": laid(sides), "elsewhere": moved, "counted": flags, "counted_B": counted_B}


def order_seed(args: TrainingArguments) -> int:
    """The seed of the order of rows."""
    return args.seed if args.data_seed is None else args.data_seed


def epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The rows 0 ... size - 1 in the order of an epoch."""
    order: list[int] = torch.randperm(size, generator=runtime.generator(seed, "order", epoch)).tolist()
    return order


def save_order(path: Path, size: int, seed: int, rows_per_step: int, epochs: int) -> None:
    """Write the order of rows of all epochs as JSON.

    Step s of epoch e takes `epochs[e][s * rows_per_step : (s + 1) * rows_per_step]`.
    """
    order = [epoch_order(size, seed, epoch) for epoch in range(epochs)]
    write_json(path, {"seed": seed, "rows_per_step": rows_per_step, "epochs": order}, indent=None)


class MicroBatches(Sampler[list[Key]]):
    """Micro-batches of one rank, as lists of keys.

    A global micro-batch is the next `batch_size * world_size` rows of the epoch's order; each rank takes one
    consecutive part. The last global micro-batch of an epoch may be short; it is split as evenly as possible,
    and a rank without a row gets one filler. So an optimizer step takes the same rows for every split of its
    batch into micro-batches and ranks.

    Args:
        size: rows of the dataset.
        batch_size: rows of a micro-batch on one rank.
        seed: seed of the order.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave out a short global micro-batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch, self.skipped = 0, 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many micro-batches to skip at its start."""
        self.epoch, self.skipped = epoch, skip

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.batch_size * self.world_size)
        return whole + int(rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, epoch_order(self.size, self.seed, self.epoch)
        width = self.batch_size * self.world_size
        for number in range(self.skipped, len(self)):
            rows = order[number * width : (number + 1) * width]
            first, end = (len(rows) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield [Key(epoch, row, True) for row in rows[first:end]] or [Key(epoch, rows[0], False)]


class EpochItems(Dataset[tuple[Item, bool]]):
    """The dataset, indexed by keys: sets a key's epoch before it reads the row, in any worker process."""

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Item, bool]:
        if key.epoch != self._epoch:
            self.dataset.set_epoch(key.epoch)
            self._epoch = key.epoch
        return self.dataset[key.row], key.counted


class CollateMicroBatch:
    """Collates the items of a micro-batch, and lays it out."""

    def __init__(self, collate: Collate, elsewhere: Mapping[str, Sequence[str]] | None = None) -> None:
        self.collate, self.elsewhere = collate, elsewhere

    def __call__(self, items: Sequence[tuple[Item, bool]]) -> MicroBatch:
        """Collate the items of one micro-batch."""
        sides = self.collate([item for item, _ in items])
        return micro_batch(sides, [counted for _, counted in items], self.elsewhere)


def loader_of(
    rows: EpochDataset,
    collate: Collate,
    args: TrainingArguments,
    parallel: Parallel,
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> DataLoader[Any]:
    """The loader of this rank's micro-batches; `micro_batches(loader).set_epoch` chooses the epoch."""
    seed = order_seed(args)
    sampler = MicroBatches(
        len(rows),
        args.per_device_train_batch_size,
        seed,
        rank=parallel.dp_rank,
        world_size=parallel.dp_size,
        drop_last=args.dataloader_drop_last,
    )
    return DataLoader(
        EpochItems(rows),
        batch_sampler=sampler,
        collate_fn=CollateMicroBatch(collate, elsewhere),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and parallel.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        # Older versions of transformers lack both.
        multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
        in_order=getattr(args, "dataloader_in_order", True),
        # The loader's own generator, so that the start of an epoch does not change the global random state.
        generator=runtime.generator(seed, "workers"),
    )


def micro_batches(loader: DataLoader[Any]) -> MicroBatches:
    """The sampler of a loader that `loader_of` made."""
    sampler = loader.batch_sampler
    assert isinstance(sampler, MicroBatches)
    return sampler
