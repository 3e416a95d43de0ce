from __future__ import annotations

import torch

from expunge.lm import runtime


def test_generators_are_equal_for_equal_parts_only():
    def draw(*parts: int | str) -> list[int]:
        return torch.randint(0, 10**9, (4,), generator=runtime.generator(*parts)).tolist()

    assert draw(0, "pairs", 1) == draw(0, "pairs", 1)
    assert draw(0, "pairs", 1) != draw(0, "pairs", 2)
    assert draw(1, "0") != draw(10, "")


def test_one_process_is_rank_0_of_1():
    assert (runtime.rank(), runtime.world_size()) == (0, 1)
    assert runtime.gathered("x") == ["x"]
    assert runtime.from_rank_0(lambda: 3) == 3


def test_autocast_only_for_half_precision():
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with runtime.autocast(torch.device("cpu"), torch.bfloat16):
        assert (left @ right).dtype == torch.bfloat16
    for dtype in (torch.float32, None):
        with runtime.autocast(torch.device("cpu"), dtype):
            assert (left @ right).dtype == torch.float32
