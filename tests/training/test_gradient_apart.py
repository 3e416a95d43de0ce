"""A rule about the terms of one side takes their gradient from the step, without another pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.optim.random_smoothing import RandomSmoothing
from expunge.optim.rules import StepRule, apart_of
from expunge.optim.sam import SAM
from expunge.training.driver import Driver

RULES = {
    "SAM": (lambda: SAM(rho=0.05), 1),
    "smoothing": (lambda: RandomSmoothing(sigma=0.02, samples=2), 2),
    "SAM of all terms": (lambda: SAM(rho=0.05, side=None), 2),
}
"""A rule, and the number of extra forward passes that it costs in a step of two terms."""


def trained(trainer: Any, model: Any, rule: Any) -> tuple[torch.Tensor, int]:
    passes: list[int] = []
    run = trainer(
        model=model,
        extra={"rules_factory": lambda *_: [rule]},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        optim="sgd",
        learning_rate=0.05,
    )
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    run.run()
    hook.remove()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), len(passes)


@pytest.mark.parametrize("name", RULES)
def test_the_steps_own_gradient_is_used(trainer: Any, tiny_model: Any, name: str) -> None:
    """2 steps of 2 micro-batches: 4 rows as 2 and 2, then 5 rows as 4 and 1."""
    make, more = RULES[name]
    found, passes = trained(trainer, tiny_model(seed=2), make())
    by_passes = make()
    by_passes.apart = None
    expected, all_passes = trained(trainer, tiny_model(seed=2), by_passes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert passes == 2 * 2 * (2 + more)
    assert all_passes > passes or by_passes.side is None


def test_it_is_kept_apart_only_if_that_is_exact(objective: Any) -> None:
    forget_retain = Driver(objective("expunge.methods.grad_diff:grad_diff"))
    assert forget_retain.keep_apart("forget")
    assert not forget_retain.keep_apart(None)
    assert not forget_retain.keep_apart("alternate")
    assert not Driver(objective("expunge.methods.npo:npo", retain="none")).keep_apart("forget")
    assert not Driver(objective("expunge.methods.npo:npo"), sequential_terms=False).keep_apart("forget")


def test_only_the_first_rule_may_ask() -> None:
    assert apart_of([SAM(), StepRule()]) == "forget"
    assert [apart_of(rules) for rules in ([], [StepRule(), SAM()], [SAM(), RandomSmoothing()])] == [None] * 3
    assert apart_of([SAM(rho=0.0)]) is None
