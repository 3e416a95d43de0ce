from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.config.stepping import bind_optimizer
from expunge.core.binding import bound_alone
from expunge.core.errors import UserError
from expunge.optim.groups import decay_groups
from expunge.optim.sophia import Sophia

MODES = ("gnb", "hutchinson", "empirical", "off")


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def give(p: nn.Parameter, *values: float) -> None:
    p.grad = torch.tensor(values, dtype=p.dtype)


def test_a_step_by_hand() -> None:
    """lr .1, wd .5, b1 .5, b2 .9, rho .5, bs 4, theta = (1, 1), ghat = (1, 2), g = (2, -.2).

    h = .1 ghat^2 = (.1, .4); rho bs h = (.2, .8); theta (1 - .05) = .95; m = .5 g = (1, -.1).
    |m| / (rho bs h) = (5, .125), clipped: (1, .125); theta = .95 - .1 * 1 = .85 and .95 + .1 * .125 = .9625.
    """
    p = parameter(1.0, 1.0)
    optimizer = Sophia([p], lr=0.1, betas=(0.5, 0.9), rho=0.5, weight_decay=0.5)
    give(p, 1.0, 2.0)
    optimizer.update_hessian(bs=4)
    give(p, 2.0, -0.2)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.85, 0.9625], abs=1e-12)
    assert optimizer.win_rate == 0.5


def retyped(
    theta: np.ndarray,
    gradients: list[np.ndarray],
    estimates: dict[int, np.ndarray],
    *,
    lr: float,
    b1: float,
    b2: float,
    rho: float,
    bs: int,
    wd: float,
    mode: str,
    twice: bool = False,
) -> np.ndarray:
    """The formula of arXiv:2305.14342 in numpy, typed from the paper and not from the class."""
    theta, m, h = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients):
        if t in estimates and mode == "gnb":
            h = b2 * h + (1 - b2) * estimates[t] ** 2
        if t in estimates and mode == "hutchinson":
            h = b2 * h + (1 - b2) * estimates[t]
        if mode == "empirical":
            h = b2 * h + (1 - b2) * g**2
        decay = b1**2 if twice else b1
        m = decay * m + (1 - decay) * g
        factor = 1 if mode == "hutchinson" else bs
        step = np.minimum(np.abs(m) / (rho * factor * np.maximum(h, 0) + 1e-15), 1.0)
        theta = theta * (1 - lr * wd) - lr * np.sign(m) * step
    return theta


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_the_retyped_formula(mode: Any, twice: bool) -> None:
    draw = np.random.default_rng(0)
    theta, gradients = (
        draw.normal(size=40),
        [draw.normal(size=40) * draw.choice([1e-3, 1, 30], size=40) for _ in range(25)],
    )
    estimates = {t: draw.normal(size=40) for t in (0, 10, 20)}
    p = nn.Parameter(torch.tensor(theta))
    optimizer = Sophia([p], 0.02, (0.9, 0.95), 0.03, 0.1, mode=mode, soul_compat=twice)
    optimizer.set_batch_tokens(7)
    for t, gradient in enumerate(gradients):
        if optimizer.hessian_due(t):
            assert t in estimates
            p.grad = torch.tensor(estimates[t])
            optimizer.update_hessian(7, {p: torch.tensor(estimates[t])} if mode == "hutchinson" else None)
        p.grad = torch.tensor(gradient)
        optimizer.step()
    expected = retyped(
        theta, gradients, estimates, lr=0.02, b1=0.9, b2=0.95, rho=0.03, bs=7, wd=0.1, mode=mode, twice=twice
    )
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_agrees_with_the_package_of_the_authors_code() -> None:
    package = pytest.importorskip(
        "sophia_opt", reason="sophia-opt is not installed; the retyped formula stands in for it"
    )
    torch.manual_seed(0)
    ours, theirs = (
        [nn.Parameter(value.clone()) for value in (torch.ones(5, 3), torch.full((4,), -2.0))]
        for _ in range(2)
    )
    a = Sophia(ours, 0.02, (0.965, 0.99), 0.04, 0.1)
    b = package.SophiaG(theirs, lr=0.02, betas=(0.965, 0.99), rho=0.04, weight_decay=0.1)
    for t in range(35):
        for estimate in [True, False] if t % 10 == 0 else [False]:
            for p, q in zip(ours, theirs, strict=True):
                p.grad = torch.randn_like(p) * 10 ** float(torch.randint(-3, 2, ()))
                q.grad = p.grad.clone()
            if estimate:
                a.update_hessian(bs=50)
                b.update_hessian()
        a.step()
        b.step(bs=50)
    assert all(torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(ours, theirs, strict=True))
    assert all(
        torch.equal(a.state[p]["exp_avg"], b.state[q]["exp_avg"]) for p, q in zip(ours, theirs, strict=True)
    )
    assert 0 < a.win_rate < 1, "both branches of the minimum are met"


def test_off_is_sign_momentum_and_equals_a_hessian_never_updated() -> None:
    torch.manual_seed(0)
    p, q, reference = (nn.Parameter(torch.ones(50)) for _ in range(3))
    off, never = Sophia([p], 0.01, weight_decay=0.1, mode="off"), Sophia([q], 0.01, weight_decay=0.1)
    m = torch.zeros(50)
    for _ in range(8):
        p.grad = torch.randn(50)
        q.grad = p.grad.clone()
        off.step()
        never.step()
        m = 0.965 * m + (1 - 0.965) * p.grad
        reference.data = reference.data * (1 - 0.01 * 0.1) - 0.01 * m.sign()
    assert torch.allclose(p, reference, rtol=1e-6)
    assert torch.equal(p, q)
    assert off.win_rate == 0.0
    assert "hessian" not in off.state[p], "an unused state takes no memory"


def test_momentum_twice_acts_as_the_square() -> None:
    p, q = parameter(1.0, 2.0), parameter(1.0, 2.0)
    a, b = (
        Sophia([p], betas=(0.9, 0.99), mode="off", soul_compat=True),
        Sophia([q], betas=(0.81, 0.99), mode="off"),
    )
    for _ in range(5):
        give(p, 0.3, -4.0)
        give(q, 0.3, -4.0)
        a.step()
        b.step()
    assert torch.allclose(a.state[p]["exp_avg"], b.state[q]["exp_avg"], rtol=1e-14)


def test_negative_curvature_counts_as_none() -> None:
    """h = -1 counts as no curvature: the step is that of sign momentum."""
    p = parameter(1.0)
    optimizer = Sophia([p], 0.1, weight_decay=0.0, mode="hutchinson")
    optimizer.update_hessian(diagonal={p: torch.tensor([-100.0], dtype=torch.float64)})
    give(p, 1e-3)
    optimizer.step()
    assert p.item() == pytest.approx(0.9)


def test_the_step_uses_the_given_number_of_tokens() -> None:
    """h = .01, m = .035: rho bs h = .04 * 10 * .01 = .004 clips.

    With 1000 tokens it is .4 and does not clip: .035 / .4 = .0875.
    """
    p = parameter(0.0)
    optimizer = Sophia([p], 1.0, weight_decay=0.0)
    give(p, 1.0)
    optimizer.update_hessian(bs=10)
    optimizer.set_batch_tokens(1000)
    optimizer.step()
    assert p.item() == pytest.approx(-0.0875)


def test_frozen_coordinates_are_excluded_from_the_win_rate() -> None:
    p = parameter(1.0, 1.0, 1.0)
    optimizer = Sophia([p], mode="off")
    assert math.isnan(optimizer.win_rate)
    give(p, 0.0, 0.0, 1.0)
    optimizer.step()
    assert optimizer.win_rate == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_state_round_trips_through_a_safe_load(mode: Any, dtype: torch.dtype) -> None:
    def build() -> tuple[nn.Parameter, Sophia]:
        p = nn.Parameter(torch.linspace(-1, 1, 30).to(dtype))
        optimizer = Sophia([p], 0.02, mode=mode, every=3)
        optimizer.set_batch_tokens(5)
        return p, optimizer

    def run(p: nn.Parameter, optimizer: Sophia, steps: range) -> None:
        for t in steps:
            draw = torch.Generator().manual_seed(t)
            p.grad = torch.randn(30, generator=draw).to(dtype)
            if optimizer.hessian_due(t):
                optimizer.update_hessian(5, {p: p.grad.float() ** 2} if mode == "hutchinson" else None)
            optimizer.step()

    p, whole = build()
    run(p, whole, range(10))
    q, first = build()
    run(q, first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    r, second = build()
    r.data.copy_(q.data)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(r, second, range(4, 10))
    assert torch.equal(p, r)
    assert all(torch.equal(whole.state[p][key], second.state[r][key]) for key in whole.state[p])
    assert second.state[r]["exp_avg"].dtype == torch.float32
    assert not torch.equal(p.data, torch.linspace(-1, 1, 30).to(dtype))


def test_state_of_another_mode_is_refused() -> None:
    p = parameter(1.0)
    with pytest.raises(UserError, match="mode empirical"):
        Sophia([p]).load_state_dict(Sophia([p], mode="empirical").state_dict())


def test_norms_and_biases_do_not_decay(small: Any) -> None:
    from transformers import Trainer

    for model in (small(), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))):
        names = {id(p): name for name, p in model.named_parameters()}
        decayed, plain = ([names[id(p)] for p in group["params"]] for group in decay_groups(model, 0.1))
        assert sorted(decayed + plain) == sorted(names.values())
        assert decayed == [
            name for name in Trainer.get_decay_parameter_names(None, model) if name in names.values()
        ]
    assert decayed == ["0.weight"]


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        bound_alone(
            bind_optimizer, {"handler": "sophia", "rho": -1.0, "betas": [0.9, 1.0], "every": 0, "mode": "gbn"}
        )
    text = str(caught.value)
    assert all(part in text for part in ("did you mean 'gnb'", "betas", "rho", "every"))


def test_a_missing_or_wrong_estimate_is_reported() -> None:
    p = parameter(1.0)
    give(p, 1.0)
    for call in (
        lambda: Sophia([p]).update_hessian(),
        lambda: Sophia([p], mode="empirical").step(),
        lambda: Sophia([p], mode="off").update_hessian(bs=3),
        lambda: Sophia([p], mode="hutchinson").update_hessian(bs=3),
        lambda: Sophia([p]).update_hessian(3, {p: p.detach()}),
    ):
        with pytest.raises(UserError):
            call()
