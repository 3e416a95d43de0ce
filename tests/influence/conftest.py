"""A two-parameter model whose gradients are computed by hand, and rows of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoded import Encoded
from expunge.lm import runtime

torch.set_num_threads(1)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.theta.expand(*input_ids.shape, 2)


class TwoParameters(nn.Module):
    """Logits (a, b, 0) at every position, for any tokens: hidden state (a, b), fixed vocabulary of three."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=self.head(self.body(input_ids)))


def example(row: int, *labels: int) -> Encoded:
    return Encoded((0, *labels), (False, *(True,) * len(labels)), None, 1, f"row{row}", row)


@pytest.fixture
def by_hand() -> tuple[nn.Module, list[Encoded]]:
    """The model, and three rows with the labels (0), (1) and (0, 2)."""
    return TwoParameters(), [example(0, 0), example(1, 1), example(2, 0, 2)]


def make_rows(count: int = 7, vocab: int = 60, seed: str = "rows") -> list[Encoded]:
    draw = runtime.generator(seed, "difficulty")
    found = []
    for row in range(count):
        prompt, answer = (
            int(torch.randint(2, 5, (), generator=draw)),
            int(torch.randint(1, 9, (), generator=draw)),
        )
        ids = torch.randint(5, vocab, (prompt + answer,), generator=draw).tolist()
        found.append(
            Encoded(tuple(ids), (False,) * prompt + (True,) * answer, None, prompt, f"id{row:02d}", row)
        )
    return found


@pytest.fixture
def rows() -> Callable[..., list[Encoded]]:
    return make_rows
