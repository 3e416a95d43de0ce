from __future__ import annotations

import random

import pytest

from expunge.lm.packing import token_budgeted_batches


@pytest.mark.parametrize("max_rows", [None, 3])
def test_every_row_once_and_within_the_budget(max_rows: int | None):
    lengths = [random.Random(0).randint(1, 60) for _ in range(200)]
    batches = token_budgeted_batches(lengths, 128, max_rows)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 128
        assert max_rows is None or len(batch) <= max_rows
    widths = [max(lengths[row] for row in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)


def test_a_row_over_the_budget_is_alone():
    assert token_budgeted_batches([5, 300, 5], 100) == [[1], [0, 2]]


def test_equal_lengths_keep_their_order_and_no_rows_make_no_batch():
    assert token_budgeted_batches([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert token_budgeted_batches([], 8) == []
