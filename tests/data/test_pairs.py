"""Collation and pairing: masks from lengths, pairs only from (seed, epoch, index), overlaps refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from expunge.core.errors import UserError
from expunge.data.collate import PairCollator, collate
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.data.pairs import PairedDataset, check_disjoint, draw_pairs, load_pairs, pairs_of, save_pairs
from expunge.data.rows import Row, RowSet
from expunge.lm.labels import label_index

EOS = 9


def example(row: int, prompt: list[int], answer: list[int]) -> Encoded:
    ids = (*prompt, *answer)
    return Encoded(
        ids, tuple(i >= len(prompt) for i in range(len(ids))), len(ids) - 1, len(prompt), f"id{row}", row
    )


def dataset(name: str, size: int, alternates: bool = False, start: int = 0) -> Dataset:
    rows = RowSet.of(name, [Row(f"{name}{start + n}", n, {"n": start + n}) for n in range(size)], "memory")
    encoded = [example(n, [1, 2], [start + n, EOS]) for n in range(size)]
    others = [example(n, [1, 2], [7, EOS]) for n in range(size)] if alternates else None
    return Dataset(name, rows, encoded, f"fp-{name}-{size}", others)


def test_collate_pads_right_or_left_and_keeps_masks() -> None:
    examples = [example(4, [1, 2], [3, EOS]), example(5, [1], [6, 7, 8, EOS])]
    right, left = collate(examples, pad_id=EOS), collate(examples, pad_id=EOS, side="left")
    assert right["input_ids"].tolist() == [[1, 2, 3, EOS, EOS], [1, 6, 7, 8, EOS]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert right["label_mask"].tolist() == [
        [False, False, True, True, False],
        [False, True, True, True, True],
    ]
    assert left["input_ids"].tolist() == [[EOS, 1, 2, 3, EOS], [1, 6, 7, 8, EOS]]
    assert left["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert right["row"].tolist() == left["row"].tolist() == [4, 5]
    assert right["label_mask"].dtype == torch.bool
    assert {right[key].dtype for key in ("input_ids", "attention_mask", "row")} == {torch.int64}


def test_left_and_right_padding_have_the_same_labels_though_pad_is_eos() -> None:
    examples = [
        example(0, [1, 2], [3, EOS]),
        example(1, [1], [6, 7, 8, EOS]),
        example(2, [1, 2, 3, 4], [EOS]),
    ]
    right, left = collate(examples, EOS), collate(examples, EOS, side="left")
    a, b = (
        label_index(right["input_ids"], right["label_mask"]),
        label_index(left["input_ids"], left["label_mask"]),
    )
    assert torch.equal(a.label_BN, b.label_BN)
    assert torch.equal(a.mask_BN, b.mask_BN)
    assert a.mask_BN.sum(-1).tolist() == [2, 4, 1], (
        "an end of turn that equals the pad token is still a label"
    )
    prompts = collate([item.prompt_only() for item in examples], EOS, side="left")
    assert prompts["input_ids"][:, -1].tolist() == [2, 1, 4]
    assert not prompts["label_mask"].any()


def test_left_and_right_padding_give_the_model_the_same_log_probs(tiny_model: Any) -> None:
    model = tiny_model()
    examples = [example(0, [1, 2], [30, 3]), example(1, [1], [60, 70, 80, 3])]
    per_side = []
    for side in (collate(examples, 3), collate(examples, 3, side="left")):
        position_BT = (side["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits_BTV = model(
            input_ids=side["input_ids"], attention_mask=side["attention_mask"], position_ids=position_BT
        ).logits
        at = label_index(side["input_ids"], side["label_mask"])
        logp_BNV = logits_BTV.log_softmax(-1).gather(
            1, at.predictor_BN[..., None].expand(-1, -1, logits_BTV.shape[-1])
        )
        per_side.append(logp_BNV.gather(2, at.label_BN[..., None])[..., 0][at.mask_BN])
    torch.testing.assert_close(*per_side, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_anchor", "n_other"), [(5, 12), (12, 5), (7, 7), (1, 1), (6, 3)])
def test_draws_are_consecutive_permutations(n_anchor: int, n_other: int) -> None:
    pairs = draw_pairs(n_anchor, n_other, seed=1, epoch=2)
    assert len(pairs) == n_anchor
    for start in range(0, n_anchor, n_other):
        block = pairs[start : start + n_other]
        assert len(set(block)) == len(block)
    counts = Counter(pairs)
    assert set(counts) <= set(range(n_other))
    assert max(counts.values()) - min(counts[n] for n in range(n_other)) <= 1


def test_draws_are_fixed_by_seed_and_epoch_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = draw_pairs(40, 360, 0, 0)
    assert one == draw_pairs(40, 360, 0, 0)
    assert one != draw_pairs(40, 360, 0, 1)
    assert one != draw_pairs(40, 360, 1, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_items_by_anchor_and_epoch() -> None:
    forget, retain = dataset("forget", 4, alternates=True), dataset("retain", 10, start=20)
    pairs = pairs_of(forget, retain, seed=0, n_epochs=2)
    paired = PairedDataset(forget, retain, pairs)
    assert len(paired) == 4
    for epoch in (0, 1, 5):  # epoch 5 was not drawn before
        paired.set_epoch(epoch)
        drawn = draw_pairs(4, 10, 0, epoch)
        for index in range(4):
            item = paired[index]
            assert item["forget"] is forget.encoded[index]
            assert item["alternate"] is forget.alternates[index]  # type: ignore[index]
            assert item["retain"] is retain.encoded[drawn[index]]
    turned = PairedDataset(forget, retain, pairs_of(forget, retain, 0, 1, anchor="retain"))
    assert len(turned) == 10
    assert [turned[n]["forget"].row for n in range(10)] == draw_pairs(10, 4, 0, 0)
    assert all(
        turned[n]["forget"].row == turned[n]["alternate"].row and turned[n]["retain"].row == n
        for n in range(10)
    )


def test_only_the_sides_that_are_read() -> None:
    forget, retain = dataset("forget", 4, alternates=True), dataset("retain", 10)
    pairs = pairs_of(forget, retain, 0, 1)
    assert set(PairedDataset(forget, retain, pairs, sides=("forget", "retain"))[0]) == {"forget", "retain"}
    assert set(PairedDataset(forget)[0]) == {"forget", "alternate"}
    alone = PairedDataset(retain=retain)
    assert len(alone) == 10
    assert alone[3] == {"retain": retain.encoded[3]}
    with pytest.raises(IndexError):
        alone[10]


def test_batches_are_the_same_with_worker_processes() -> None:
    forget, retain = dataset("forget", 6), dataset("retain", 10, start=20)
    paired = PairedDataset(forget, retain, pairs_of(forget, retain, 0, 3))
    paired.set_epoch(2)
    alone = list(DataLoader(paired, batch_size=2, collate_fn=PairCollator(0)))
    shared = list(DataLoader(paired, batch_size=2, collate_fn=PairCollator(0), num_workers=1))
    assert len(alone) == len(shared) == 3
    for a, b in zip(alone, shared, strict=True):
        assert set(a) == {"forget", "retain"}
        assert all(torch.equal(a[side][key], b[side][key]) for side in a for key in a[side])


def test_pairs_survive_the_file(tmp_path: Path) -> None:
    forget, retain = dataset("forget", 4), dataset("retain", 10)
    pairs = pairs_of(forget, retain, seed=5, n_epochs=3)
    save_pairs(tmp_path / "pairs" / "pairs.json", pairs)
    assert load_pairs(tmp_path / "pairs" / "pairs.json") == pairs


def test_pairs_of_other_data_or_damaged_pairs_are_refused(tmp_path: Path) -> None:
    forget, retain = dataset("forget", 4), dataset("retain", 10)
    pairs = pairs_of(forget, retain, 0, 1)
    with pytest.raises(UserError, match="belong to other"):
        PairedDataset(forget, dataset("retain", 9), pairs)
    with pytest.raises(UserError, match="pairs_of"):
        PairedDataset(forget, retain)
    path = tmp_path / "pairs.json"
    save_pairs(path, pairs)
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "epochs": [[0, 1, 2, 10]]}))
    with pytest.raises(UserError, match="damaged"):
        load_pairs(path)
    path.write_text(json.dumps({"epochs": 3}))
    with pytest.raises(UserError, match="not a file of pairs"):
        load_pairs(path)


def test_a_missing_side_is_reported() -> None:
    forget = dataset("forget", 4)
    with pytest.raises(
        UserError, match=r"reads alternate rows(.|\n)*idk(.|\n)*reads retain rows(.|\n)*data.retain"
    ):
        PairedDataset(forget, sides=("forget", "alternate", "retain"))
    with pytest.raises(UserError, match="neither forget nor retain"):
        PairedDataset()


def row_set(name: str, ids: list[str]) -> RowSet:
    return RowSet.of(name, [Row(row_id, 0, {}) for row_id in ids], "memory")


def test_overlap_names_the_rows_and_finds_repeats() -> None:
    check_disjoint(row_set("forget10", ["a", "b"]), row_set("retain90", ["c", "d"]))
    with pytest.raises(UserError) as caught:
        check_disjoint(row_set("forget10", ["a", "b", "c#1"]), row_set("full", ["x", "c", "b"]))
    message = str(caught.value)
    assert "forget (forget10) and retain (full) share 2 of 3 forget rows" in message
    assert "b: row 1 of forget10, row 2 of full" in message
    assert "c#1: row 2 of forget10, row 1 of full" in message
    assert "forget10 with retain90" in message
