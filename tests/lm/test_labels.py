from __future__ import annotations

import torch

from expunge.lm.labels import label_index


def test_compacts_labels_in_order():
    """Row 0: labels at 2 and 3, predicted from 1 and 2. Row 1: label at 1, predicted from 0, then padding."""
    ids_BT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask_BT = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]]).bool()
    index = label_index(ids_BT, mask_BT)
    assert index.predictor_BN.tolist() == [[1, 2], [0, 0]]
    assert index.label_BN.tolist() == [[7, 8], [10, 0]]
    assert index.mask_BN.tolist() == [[True, True], [True, False]]


def test_label_at_position_0_is_not_counted():
    ids_BT = torch.tensor([[5, 6, 7]])
    index = label_index(ids_BT, torch.tensor([[True, False, True]]))
    assert index.predictor_BN.tolist() == [[1]]
    assert index.label_BN.tolist() == [[7]]


def test_rows_without_labels_and_single_tokens():
    index = label_index(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[False, False], [False, True]]))
    assert index.mask_BN.tolist() == [[False], [True]]
    alone = label_index(torch.tensor([[5]]), torch.tensor([[True]]))
    assert alone.mask_BN.tolist() == [[False]]
    assert alone.label_BN.shape == (1, 1)


def test_gaps_are_closed_and_match_a_loop():
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, 50, (7, 19), generator=generator)
    mask_BT = torch.rand(7, 19, generator=generator) < 0.4
    index = label_index(ids_BT, mask_BT)
    for row in range(7):
        positions = [p for p in range(1, 19) if mask_BT[row, p]]
        count = int(index.mask_BN[row].sum())
        assert index.predictor_BN[row, :count].tolist() == [p - 1 for p in positions]
        assert index.label_BN[row, :count].tolist() == [int(ids_BT[row, p]) for p in positions]
        assert not index.mask_BN[row, count:].any()
    assert index.mask_BN.shape[1] == int(mask_BT[:, 1:].sum(-1).max())
