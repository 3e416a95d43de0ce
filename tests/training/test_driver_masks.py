"""The driver masks: the value of a loss at a position without a label changes no mean and no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.methods.base import loss
from expunge.methods.objective import Objective, Term
from expunge.training.driver import Driver, count_step, place_of
from expunge.training.order import micro_batch
from expunge.training.places import special


@loss(kind="token")
def log_surprise(forget_logp_BN: Tensor) -> Tensor:
    """Log of -log p: -inf at a masked position (log p = 0), and NaN in the gradient."""
    return (-forget_logp_BN).log()


@loss(kind="token")
def length(forget_logits_BNV: Tensor) -> Tensor:
    """The norm of the logits; its gradient at 0 is 0 / 0."""
    return forget_logits_BNV.square().sum(-1).sqrt()


@loss(kind="token", skip="skip")
def skipping(forget_logp_BN: Tensor, *, skip: int = 2) -> Tensor:
    """Log p of all labels except the first ones."""
    return forget_logp_BN


def step(model: Any, function: Any, batch: Any, **kwargs: Any) -> tuple[float, Tensor]:
    """The term's mean over a step of one micro-batch, and the gradient."""
    objective = Objective([Term("term", function, 1.0, kwargs)])
    places = special(place_of(term) for term in objective.terms)
    counts = count_step([batch], ["forget"], lambda total: total, places)
    model.zero_grad()
    _, values = Driver(objective).backward(model, batch, counts, lambda loss: loss.backward())
    return values.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def by_hand(model: Any, function: Any, pairs: Any, rows: range, skip: int = 0) -> tuple[float, Tensor]:
    """The same, row by row, so that nothing is padded."""
    values = []
    for row in rows:
        example = pairs[row]["forget"]
        logits_TV = model(torch.tensor([example.input_ids])).logits[0]
        places = [place for place, counted in enumerate(example.label_mask) if counted][skip:]
        for place in places:
            logits_1V = logits_TV[place - 1].unsqueeze(0)
            given = (
                logits_1V if function is length else logits_1V.log_softmax(-1)[:, example.input_ids[place]]
            )
            values.append(function(given).squeeze())
    total = torch.stack(values).mean()
    model.zero_grad()
    total.backward()
    return total.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("function", [log_surprise, length])
def test_a_loss_that_is_not_finite_under_the_mask_trains(
    tiny_model: Any, pairs: Any, make_collate: Any, function: Any
) -> None:
    model, data, rows = tiny_model(seed=2), pairs(), range(5)
    batch = micro_batch(make_collate([data[row] for row in rows]))
    assert len({sum(data[row]["forget"].label_mask) for row in rows}) > 1, "some place has to be masked"
    value, gradient = step(model, function, batch)
    expected, by_rows = by_hand(model, function, data, rows)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, by_rows, rtol=1e-4, atol=1e-6)


def test_what_is_skipped_is_neither_in_the_sum_nor_in_the_mean(
    tiny_model: Any, pairs: Any, make_collate: Any
) -> None:
    model, data, rows = tiny_model(seed=2), pairs(), range(5)
    batch = micro_batch(make_collate([data[row] for row in rows]))
    value, gradient = step(model, skipping, batch, skip=2)
    expected, by_rows = by_hand(model, skipping, data, rows, skip=2)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, by_rows, rtol=1e-4, atol=1e-6)
