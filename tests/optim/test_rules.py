from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from expunge.config.stepping import bind_rules
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.optim.random_smoothing import RandomSmoothing
from expunge.optim.rules import Step, StepRule
from expunge.optim.sam import SAM


class Quadratic(nn.Module):
    """forget: theta_0^2 + 2 theta_1^2; retain: (theta_0 - 1)^2 / 2 + 3 theta_1."""

    def __init__(self, *theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.seen: list[tuple[str, list[float]]] = []

    def closure(self, keep: Callable[[str], bool] | None = None) -> None:
        a, b = self.theta
        for side, loss in (("forget", a**2 + 2 * b**2), ("retain", (a - 1) ** 2 / 2 + 3 * b)):
            if keep is None or keep(side):
                self.seen.append((side, self.theta.tolist()))
                loss.backward()


def gradient(model: Quadratic, rule: StepRule, number: int = 0) -> list[float]:
    step = Step(number, model.closure, lambda: iter(()), seed=0)
    before = model.theta.detach().clone()
    rule.on_step_begin(model, step)
    model.closure()
    rule.on_backward_done(model, step)
    assert torch.equal(model.theta, before)
    assert model.theta.grad is not None
    found: list[float] = model.theta.grad.tolist()
    model.theta.grad = None
    return found


def test_sam_on_the_forget_terms_by_hand() -> None:
    """theta = (1.5, 1): g_f = (3, 4), ||g_f|| = 5, rho = .5: delta = (.3, .4).

    g_f(theta + delta) = (3.6, 5.6); g_r(theta) = (.5, 3).
    """
    model = Quadratic(1.5, 1.0)
    rule = SAM(rho=0.5)
    assert gradient(model, rule) == pytest.approx([4.1, 8.6])
    assert rule.metrics() == {"sam_grad_norm": pytest.approx(5.0)}
    assert {side for side, theta in model.seen if theta != [1.5, 1.0]} == {"forget"}


def test_sam_on_all_terms_by_hand() -> None:
    """theta = (1, .25): g = (2, 1) + (0, 3) = (2, 4); rho = sqrt(20): delta = (2, 4).

    At (3, 4.25): g = (6, 17) + (2, 3).
    """
    assert gradient(Quadratic(1.0, 0.25), SAM(rho=20**0.5, side=None)) == pytest.approx([8.0, 20.0])


def test_sam_without_a_direction_keeps_the_gradient() -> None:
    assert gradient(Quadratic(0.0, 0.0), SAM(rho=0.5)) == [-1.0, 3.0]


def test_sam_shows_an_overflow_to_the_scaler() -> None:
    found = gradient(Quadratic(float("inf"), 1.0), SAM(rho=0.5, side=None))
    assert found[0] == float("inf")


def test_smoothing_is_the_mean_over_the_noise() -> None:
    """The gradient is linear, so its mean over the draws is the gradient at the mean of the draws."""
    model = Quadratic(1.5, 1.0)
    found = gradient(model, RandomSmoothing(sigma=0.3, samples=400))
    seen = torch.tensor([theta for side, theta in model.seen if theta != [1.5, 1.0]], dtype=torch.float64)
    assert len(seen) == 400
    mean = seen.mean(0)
    assert found == pytest.approx([2 * mean[0].item() + 0.5, 4 * mean[1].item() + 3.0])
    assert torch.allclose(seen.std(0), torch.tensor(0.3, dtype=torch.float64), rtol=0.2)
    assert torch.allclose(mean, torch.tensor([1.5, 1.0], dtype=torch.float64), atol=5 * 0.3 / 20)
    assert {side for side, theta in model.seen if theta != [1.5, 1.0]} == {"forget"}


def test_noise_is_a_function_of_seed_and_step() -> None:
    first, again, other = (
        gradient(Quadratic(1.5, 1.0), RandomSmoothing(sigma=0.3), number) for number in (4, 4, 5)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("rule", [SAM(rho=0.0), SAM(rho=0.0, side=None), RandomSmoothing(sigma=0.0)])
def test_a_disabled_rule_changes_nothing(small: Any, lab: Any, rule: StepRule) -> None:
    found = []
    for rules in ([], [rule]):
        model = small()
        norms = lab.train(model, torch.optim.AdamW(model.parameters(), 1e-2), rules, 3)
        found.append((lab.weights(model), norms))
    assert lab.same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    "rule", [SAM(rho=0.05), SAM(rho=0.05, side=None), RandomSmoothing(sigma=0.01, samples=2)]
)
def test_weights_are_restored_bit_for_bit(small: Any, lab: Any, rule: StepRule) -> None:
    """With learning rate 0 only the rule could move a weight; with another rate the rule has an effect."""
    model = small()
    before = lab.weights(model)
    lab.train(model, torch.optim.SGD(model.parameters(), 0.0), [rule], 2)
    assert lab.same_bits(before, lab.weights(model))
    plain = small()
    for moved, rules in ((model, [rule]), (plain, [])):
        lab.train(moved, torch.optim.SGD(moved.parameters(), 0.1), rules, 1)
    assert not lab.same_bits(lab.weights(model), lab.weights(plain))


def test_weights_are_restored_after_a_failure() -> None:
    model = Quadratic(1.5, 1.0)
    calls = []

    def closure(keep: Callable[[str], bool] | None = None) -> None:
        calls.append(model.theta.tolist())
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        model.closure(keep)

    with pytest.raises(RuntimeError, match="out of memory"):
        SAM(rho=0.5).on_backward_done(model, Step(0, closure, lambda: iter(())))
    assert calls[1] != [1.5, 1.0]
    assert model.theta.tolist() == [1.5, 1.0]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"sam": {"rho": -1.0}}, r"sam\.rho=-1\.0: must be a number of at least 0"),
        ({"random_smoothing": {"sigma": float("nan")}}, r"sigma=nan: must be a finite number"),
        ({"random_smoothing": {"samples": 0}}, r"samples=0: must be a whole number of at least 1"),
    ],
)
def test_invalid_values_are_refused(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        bound_alone(bind_rules, rule)
