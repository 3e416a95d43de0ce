from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.files import read_json
from expunge.training.order import Key, MicroBatches, epoch_order, micro_batches


def dealt(size: int, batch: int, world: int, epoch: int = 0) -> list[list[list[Key]]]:
    """Micro-batches by rank."""
    ranks = []
    for rank in range(world):
        sampler = MicroBatches(size, batch, seed=5, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


@pytest.mark.parametrize(
    ("size", "batch", "world"), [(13, 4, 1), (13, 2, 2), (13, 3, 2), (13, 2, 3), (3, 1, 4), (8, 4, 2)]
)
def test_every_row_once_and_as_many_micro_batches_on_every_rank(size: int, batch: int, world: int) -> None:
    ranks = dealt(size, batch, world)
    assert len({len(rank) for rank in ranks}) == 1
    rows = [key.row for rank in ranks for keys in rank for key in keys if key.counted]
    assert sorted(rows) == list(range(size))
    assert all(keys for rank in ranks for keys in rank)


def test_a_step_takes_the_same_rows_on_one_rank_and_on_two() -> None:
    """Steps of 8: 1 rank x 8, 2 ranks x 4, and 2 ranks x 2 x 2 micro-batches."""
    one, two, four = dealt(13, 8, 1), dealt(13, 4, 2), dealt(13, 2, 2)
    for step in range(2):
        rows = {key.row for key in one[0][step]}
        assert {key.row for rank in two for key in rank[step]} == rows
        assert {
            key.row for rank in four for keys in rank[2 * step : 2 * step + 2] for key in keys if key.counted
        } == rows


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_order(50, 7, 3)
    before = torch.get_rng_state()
    assert epoch_order(50, 7, 3) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert epoch_order(50, 7, 4) != first
    assert epoch_order(50, 8, 3) != first


def test_a_short_micro_batch_is_left_out_on_request() -> None:
    assert [len(keys) for keys in MicroBatches(13, 4, 0, drop_last=True)] == [4, 4, 4]


def test_workers_see_the_epochs_pairs(trainer: Any) -> None:
    """Persistent workers draw the same pairs as a loader without workers."""
    runs = [trainer(), trainer(dataloader_num_workers=1, dataloader_persistent_workers=True)]
    for loader in [run.loader for run in runs]:
        seen = []
        for epoch in range(2):
            micro_batches(loader).set_epoch(epoch)
            seen.append([batch["sides"]["retain"]["row"].tolist() for batch in loader])
        runs.append(seen)
    assert runs[2] == runs[3]
    assert runs[2][0] != runs[2][1]


def test_the_order_is_stored_with_the_run(trainer: Any, tmp_path: Path) -> None:
    run = trainer(num_train_epochs=2)
    run.run()
    stored = read_json(run.run_dir / "pairs" / "order.json")
    assert stored == {"seed": 3, "rows_per_step": 4, "epochs": [epoch_order(13, 3, 0), epoch_order(13, 3, 1)]}
