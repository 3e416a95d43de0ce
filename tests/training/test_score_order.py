from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.core.errors import UserError
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, pairs_of
from expunge.data.rows import Row, RowSet
from expunge.data.subset import subset
from expunge.training.listeners import Listener, Moment
from expunge.training.order import epoch_order
from expunge.training.score_order import InScoreOrder, score_order

SCORES = {"c": 2.0, "a": 2.0, "d": 0.5, "b": 3.0}
UIDS = ("d", "c", "b", "a")


def dataset(name: str, size: int, alternates: bool = False) -> Dataset:
    rows = RowSet.of(name, [Row(f"{name}{n}", n, {}) for n in range(size)], "test")
    encoded = [Encoded((1, 5 + n, 2), (False, True, True), 2, 1, f"{name}{n}", n) for n in range(size)]
    others = (
        [Encoded((1, 50 + n, 2), (False, True, True), 2, 1, f"{name}{n}", n) for n in range(size)]
        if alternates
        else None
    )
    return Dataset(name, rows, encoded, f"fp-{name}", others)


def pairs(
    n_forget: int = 7, n_retain: int = 9, anchor: Any = "forget", alternates: bool = False
) -> PairedDataset:
    forget, retain = dataset("f", n_forget, alternates), dataset("r", n_retain)
    return PairedDataset(forget, retain, pairs_of(forget, retain, 3, 2, anchor))


@pytest.mark.parametrize(("order", "expected"), [("score_asc", "dacb"), ("score_desc", "bacd")])
def test_rows_are_sorted_by_score_and_equal_ones_by_uid(order: str, expected: str) -> None:
    """Scores b 3, a = c 2, d 0.5: in both orders a comes before c."""
    found = score_order(SCORES, UIDS, order=order)
    assert found.rank is not None
    assert found.kept is None
    assert "".join(uid for _, uid in sorted(zip(found.rank, UIDS, strict=True))) == expected


def test_selecting_is_apart_from_ordering() -> None:
    assert score_order(SCORES, UIDS) == (None, None)
    assert score_order(SCORES, UIDS, select="first_k", k=2, select_by="score_desc") == ((2, 3), None), (
        "b and a, as drawn"
    )
    assert score_order(SCORES, UIDS, select="first_k", k=3, order="score_asc") == ((0, 1, 3), (0, 2, 1)), (
        "d, c, a; places d 0, c 2, a 1"
    )
    both = score_order(SCORES, UIDS, select="first_k", k=2, select_by="score_desc", order="score_asc")
    assert both == ((2, 3), (1, 0)), "b and a are kept, and a comes first"
    for settings, said in (
        ({"select": "first_k", "k": 5, "order": "score_asc"}, "there are only 4 forget rows"),
        ({"select": "first_k", "order": "score_asc"}, r"first_k needs the number of rows\n.*difficulty\.k"),
        ({"select": "first_k", "k": 1}, "first_k needs an order"),
    ):
        with pytest.raises(UserError, match=said):
            score_order(SCORES, UIDS, **settings)  # type: ignore[arg-type]


def test_a_subset_keeps_ids_and_alternates() -> None:
    whole = dataset("f", 5, alternates=True)
    part = subset(whole, (1, 4))
    assert part.rows.ids == ("f1", "f4")
    assert [(row.row_id, row.row, row.input_ids) for row in part.encoded] == [
        ("f1", 0, (1, 6, 2)),
        ("f4", 1, (1, 9, 2)),
    ]
    assert part.alternates is not None
    assert [row.input_ids[1] for row in part.alternates] == [51, 54]
    assert part.fingerprint not in (whole.fingerprint, subset(whole, (1, 3)).fingerprint)


def gone_through(rows: Any, size: int, epoch: int, seed: int = 11) -> list[dict[str, str]]:
    """The ids of the rows of an epoch, in the order of training."""
    rows.set_epoch(epoch)
    return [
        {side: example.row_id for side, example in rows[item].items()}
        for item in epoch_order(size, seed, epoch)
    ]


RANK = (3, 0, 6, 1, 5, 2, 4)
IN_ORDER = ["f1", "f3", "f5", "f0", "f6", "f4", "f2"]
"""Rows by RANK: row 1 is first, then 3, 5, 0, 6, 4, and 2 is last."""


def test_the_uids_of_epoch_1_come_in_order_and_retain_rows_do_not_move() -> None:
    plain = pairs()
    for epoch in (0, 1):
        drawn = gone_through(plain, 7, epoch)
        ordered = InScoreOrder(pairs(), RANK, 11)
        assert [row["forget"] for row in gone_through(ordered, 7, epoch)] == IN_ORDER
        assert [row["retain"] for row in gone_through(ordered, 7, epoch)] == [row["retain"] for row in drawn]
        assert [f"f{row}" for row in ordered.sequence(epoch)] == IN_ORDER
        assert [row["forget"] for row in drawn] != IN_ORDER
    assert gone_through(ordered, 7, 0) != gone_through(ordered, 7, 1), (
        "the retain rows of another epoch are others"
    )


def test_alternates_go_with_their_row() -> None:
    ordered = InScoreOrder(pairs(alternates=True), RANK, 11)
    for item in range(7):
        sides = ordered[item]
        assert sides["alternate"].row == sides["forget"].row


def test_forget_rows_alone_are_ordered_too() -> None:
    alone = PairedDataset(dataset("f", 7))
    assert [row["forget"] for row in gone_through(InScoreOrder(alone, RANK, 11), 7, 0)] == IN_ORDER


def test_where_retain_rows_are_the_anchor_every_forget_row_comes_once_before_any_comes_again() -> None:
    """16 retain rows and 7 forget rows: two full rounds, and a third round of two rows."""
    plain, ordered = pairs(7, 16, "retain"), InScoreOrder(pairs(7, 16, "retain"), RANK, 11)
    drawn, found = gone_through(plain, 16, 0), gone_through(ordered, 16, 0)
    assert [row["retain"] for row in found] == [row["retain"] for row in drawn]
    forget = [row["forget"] for row in found]
    assert Counter(forget) == Counter(row["forget"] for row in drawn), "the same rows as often"
    assert forget[:7] == forget[7:14] == IN_ORDER
    assert [IN_ORDER.index(uid) for uid in forget[14:]] == sorted(IN_ORDER.index(uid) for uid in forget[14:])


def test_training_takes_the_forget_rows_in_order(
    trainer: Callable[..., Any], pairs: Callable[..., PairedDataset]
) -> None:
    """The rows of training, by micro-batch, over two epochs; nothing shuffles them again."""
    taken: list[tuple[list[int], list[int]]] = []

    class Notes(Listener):
        def before_update(self, moment: Moment) -> None:
            taken.extend(
                (batch["sides"]["forget"]["row"].tolist(), batch["sides"]["retain"]["row"].tolist())
                for batch in moment.batches
            )

    rank = [(5 * row + 3) % 13 for row in range(13)]
    trainer(extra={"listeners": [Notes()]}).run()
    plain, taken = list(taken), []
    trainer(pairs=InScoreOrder(pairs(), rank, 3), extra={"listeners": [Notes()]}).run()
    rows = [row for forget, _ in taken for row in forget]
    assert rows == sorted(range(13), key=lambda row: rank[row]) * 2
    assert [retain for _, retain in taken] == [retain for _, retain in plain]
    assert sorted(row for forget, _ in plain for row in forget) == sorted(rows)


def test_the_order_is_the_same_on_one_rank_and_on_two() -> None:
    """A step of four rows has the same forget rows and the same pairs for every split over ranks."""
    from expunge.training.order import MicroBatches

    ordered = InScoreOrder(pairs(13, 17), [(5 * row + 3) % 13 for row in range(13)], 11)
    ordered.set_epoch(1)

    def steps(batch: int, world: int) -> list[set[tuple[int, int]]]:
        samplers = [MicroBatches(13, batch, 11, rank, world) for rank in range(world)]
        for sampler in samplers:
            sampler.set_epoch(1)
        dealt = [list(sampler) for sampler in samplers]
        keys = [[key for rank in dealt for key in rank[step] if key.counted] for step in range(len(dealt[0]))]
        return [
            {(ordered[key.row]["forget"].row, ordered[key.row]["retain"].row) for key in step}
            for step in keys
        ]

    assert steps(4, 1) == steps(2, 2)


def test_a_stopped_run_resumes_in_the_same_order(
    trainer: Callable[..., Any],
    pairs: Callable[..., PairedDataset],
    tmp_path: Path,
) -> None:
    """Stopped in the first epoch: bit for bit the weights of an uninterrupted run, not those as drawn."""

    class StoppedError(BaseException):
        pass

    def run(folder: str, ordered: bool = True) -> Any:
        rows = InScoreOrder(pairs(), [(5 * row + 3) % 13 for row in range(13)], 3) if ordered else pairs()
        return trainer(folder=tmp_path / folder, pairs=rows, save_strategy="steps", save_steps=2)

    class Stops(Listener):
        def before_update(self, moment: Moment) -> None:
            if moment.step == 3:
                raise StoppedError

    def weights(trained: Any) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in trained.model.state_dict().items()}

    # Each is built right before it trains, because the construction seeds dropout.
    (whole := run("whole")).run()
    (plain := run("plain", ordered=False)).run()
    stopped = run("stopped")
    stopped.listeners.append(Stops())
    with pytest.raises(StoppedError):
        stopped.run()
    resumed = run("stopped")
    resumed.run(True)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert not all(torch.equal(value, expected[name]) for name, value in weights(plain).items())
