from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.lm import runtime
from expunge.optim.curvature import (
    SophiaCurvature,
    hessian_product,
    rademacher,
    sample_labels,
    sampled_sum,
)
from expunge.optim.rules import Step
from expunge.optim.sophia import Sophia


def regression(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax regression in float64: W [V, D], inputs [n, D], and the Gauss-Newton diagonal.

    It is that of the mean cross-entropy. The logits are linear in W, so with J the Jacobian and A = diag(p) -
    p p^T, the diagonal at W[v, d] is mean_i x_id^2 p_iv (1 - p_iv).
    """
    draw = torch.Generator().manual_seed(seed)
    W_VD = torch.randn(3, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    x_ND = torch.randn(n, 2, generator=draw, dtype=torch.float64)
    p_NV = (x_ND @ W_VD.detach().T).softmax(-1)
    diagonal_VD = torch.einsum("nd,nv->vd", x_ND**2, p_NV * (1 - p_NV)) / n
    return W_VD, x_ND, diagonal_VD


def test_the_gauss_newton_diagonal_equals_the_one_from_the_jacobian() -> None:
    W_VD, x_ND, diagonal_VD = regression(3)
    explicit_P = torch.zeros(6, dtype=torch.float64)
    for x_D in x_ND:
        J_VP = torch.autograd.functional.jacobian(lambda W_VD, x_D=x_D: W_VD @ x_D, W_VD.detach()).reshape(
            3, 6
        )
        p_V = (W_VD.detach() @ x_D).softmax(-1)
        explicit_P += (J_VP.T @ (torch.diag(p_V) - torch.outer(p_V, p_V)) @ J_VP).diagonal() / 3
    assert torch.allclose(explicit_P.reshape(3, 2), diagonal_VD, atol=1e-14)


def test_gnb_is_unbiased_over_all_labels() -> None:
    """The mean of n ghat^2 over all 3^3 draws of three labels, by probability, is the diagonal."""
    W_VD, x_ND, diagonal_VD = regression(3)
    logp_NV = (x_ND @ W_VD.T).log_softmax(-1)
    mean_VD = torch.zeros_like(diagonal_VD)
    for labels in itertools.product(range(3), repeat=3):
        drawn_N = logp_NV[torch.arange(3), torch.tensor(labels)]
        ghat_VD = torch.autograd.grad(-drawn_N.mean(), W_VD, retain_graph=True)[0]
        mean_VD += drawn_N.sum().exp().detach() * 3 * ghat_VD**2
    assert torch.allclose(mean_VD, diagonal_VD, atol=1e-14)


def test_the_estimate_from_sampled_labels_is_unbiased() -> None:
    """1500 draws over 4 label positions, with one masked position between them.

    Every coordinate is within 5 standard errors of the diagonal, the sum within 8 %.
    """
    W_VD, x_ND, diagonal_VD = regression(4)
    padded_ND = torch.cat([x_ND[:2], torch.full((1, 2), 50.0, dtype=torch.float64), x_ND[2:]])
    mask_BN = torch.tensor([[True, True, False, True, True]])
    generator = runtime.generator("unbiased")
    draws = []
    for _ in range(1500):
        loss = sampled_sum((padded_ND @ W_VD.T).unsqueeze(0), mask_BN, generator) / 4
        draws.append(4 * torch.autograd.grad(loss, W_VD)[0] ** 2)
    draws_KVD = torch.stack(draws)
    error_VD = draws_KVD.std(0) / 1500**0.5
    assert bool(((draws_KVD.mean(0) - diagonal_VD).abs() < 5 * error_VD).all())
    assert draws_KVD.mean(0).sum().item() == pytest.approx(diagonal_VD.sum().item(), rel=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_follow_the_softmax(dtype: torch.dtype) -> None:
    logits_V = torch.tensor([0.5, 2.0, -torch.inf, 0.0], dtype=dtype)
    logits_BNV = logits_V.expand(4, 2500, 4)
    label_BN = sample_labels(logits_BNV, torch.ones(4, 2500, dtype=torch.bool), runtime.generator("labels"))
    share_V = torch.bincount(label_BN.flatten(), minlength=4) / 10_000
    # Five standard errors of a share of one half.
    assert torch.allclose(share_V, logits_V.float().softmax(-1), atol=5 * 0.5 / 100)
    assert share_V[2] == 0, "what has no probability is not drawn"


def test_masked_positions_draw_nothing() -> None:
    logits_BNV = torch.randn(2, 5, 7, generator=runtime.generator("masked"))
    mask_BN = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    packed_BNV = torch.stack([torch.cat([logits_BNV[b][mask_BN[b]]]) for b in range(2)])
    alone = sample_labels(packed_BNV, torch.ones(2, 2, dtype=torch.bool), runtime.generator(0))
    among = sample_labels(logits_BNV, mask_BN, runtime.generator(0))
    assert torch.equal(among[mask_BN], alone.flatten())
    assert not among[~mask_BN].any()
    assert sample_labels(logits_BNV, torch.zeros_like(mask_BN), runtime.generator(0)).sum() == 0
    assert sampled_sum(logits_BNV, torch.zeros_like(mask_BN), runtime.generator(0)).item() == 0


def net() -> tuple[list[nn.Parameter], Tensor, Tensor]:
    """A function of five parameters with a Hessian that is not diagonal; the dense Hessian."""
    a = nn.Parameter(torch.tensor([0.3, -0.8], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([[0.5, 1.1, -0.4]], dtype=torch.float64))

    def loss(flat: Tensor) -> Tensor:
        return (flat[:2].tanh().sum() * flat[2:].exp().sum()).square() + flat.sin().prod()

    flat = torch.cat([a, b.flatten()])
    return [a, b], loss(flat), torch.autograd.functional.hessian(loss, flat.detach())


def test_hessian_product_is_that_of_the_dense_hessian() -> None:
    parameters, loss, H_PP = net()
    vector = [
        torch.tensor([1.0, -2.0], dtype=torch.float64),
        torch.tensor([[0.5, 3.0, -1.0]], dtype=torch.float64),
    ]
    product_P = torch.cat([part.flatten() for part in hessian_product(loss, parameters, vector)])
    assert torch.allclose(product_P, H_PP @ torch.cat([part.flatten() for part in vector]), rtol=1e-12)


def test_hutchinson_over_all_signs_is_the_diagonal() -> None:
    """The mean of u (H u) over all 2^5 sign vectors is the diagonal of the dense Hessian, to rounding."""
    total_P = torch.zeros(5, dtype=torch.float64)
    for signs in itertools.product((-1.0, 1.0), repeat=5):
        parameters, loss, H_PP = net()
        u_P = torch.tensor(signs, dtype=torch.float64)
        product = hessian_product(loss, parameters, [u_P[:2], u_P[2:].reshape(1, 3)])
        total_P += u_P * torch.cat([part.flatten() for part in product]) / 32
    assert torch.allclose(total_P, H_PP.diagonal(), rtol=1e-12)
    assert (H_PP - torch.diag(H_PP.diagonal())).abs().max() > 0.1


def test_a_loss_without_curvature_has_none() -> None:
    p, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    product = hessian_product((2 * p).sum(), [p, unused], [torch.ones(3), torch.ones(2)])
    assert [part.tolist() for part in product] == [[0, 0, 0], [0, 0]]


def test_rademacher_draws_both_signs_alike() -> None:
    (u_P,) = rademacher([torch.zeros(10_000)], runtime.generator("signs"))
    assert set(u_P.tolist()) == {-1.0, 1.0}
    assert abs(u_P.mean().item()) < 5 / 100


def step_of(model: nn.Module, batches: list[Any], number: int = 0) -> Step:
    return Step(number, closure=lambda keep=None: None, batches=lambda: iter(batches), seed=1)


def test_rows_draw_independently() -> None:
    """Two rows with their own generators draw the same labels together as alone."""
    logits_BNV = torch.randn(2, 5, 7, generator=runtime.generator("rows"))
    mask_BN = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 1]]).bool()
    together = sample_labels(logits_BNV, mask_BN, [runtime.generator("row", b) for b in range(2)])
    for b in range(2):
        alone = sample_labels(logits_BNV[b : b + 1], mask_BN[b : b + 1], runtime.generator("row", b))
        assert torch.equal(together[b : b + 1], alone)


@pytest.mark.parametrize("mode", ["gnb", "hutchinson"])
def test_the_estimate_does_not_depend_on_micro_batches(small: Any, lab: Any, mode: Any) -> None:
    side = lab.make_side(4, "curvature")
    found = []
    for size in (4, 1):
        model = small()
        before = lab.weights(model)
        optimizer = Sophia(model.parameters(), mode=mode)
        rule = SophiaCurvature(optimizer)
        rule.on_step_begin(model, step_of(model, [{"forget": part} for part in lab.split(side, size)]))
        assert all(p.grad is None for p in model.parameters())
        assert lab.same_bits(before, lab.weights(model))
        assert optimizer.param_groups[0]["bs"] == int(side["label_mask"].sum())
        found.append([optimizer.state[p]["hessian"] for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6 * float(one.abs().max()))
    assert max(float(h.abs().max()) for h in found[0]) > 0


def test_hutchinson_through_a_model_is_u_h_u(small: Any, lab: Any) -> None:
    """Against a central difference of gradients along u, the direction that the rule draws."""
    model, side = small(), lab.make_side(3, "difference")
    optimizer = Sophia(model.parameters(), betas=(0.9, 0.0), mode="hutchinson")
    SophiaCurvature(optimizer).on_step_begin(model, step_of(model, [{"forget": side}]))
    parameters = list(model.parameters())
    u = rademacher(parameters, runtime.generator(1, "hutchinson", 0))
    tokens, eps, gradients = int(side["label_mask"].sum()), 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, direction in zip(parameters, u, strict=True):
                p.add_(direction, alpha=sign * eps)
        gradients.append(torch.autograd.grad(lab.nll_sum(model, side) / tokens, parameters))
        with torch.no_grad():
            for p, direction in zip(parameters, u, strict=True):
                p.sub_(direction, alpha=sign * eps)
    for p, direction, up, down in zip(parameters, u, *gradients, strict=True):
        expected, h = direction * (up - down) / (2 * eps), optimizer.state[p]["hessian"]
        assert float((h - expected).norm()) < 0.02 * float(expected.norm())


def test_estimates_are_made_every_few_steps_and_on_the_chosen_sides(small: Any, lab: Any) -> None:
    model = small()
    batch = {"forget": lab.make_side(2, "a"), "retain": lab.make_side(3, "b")}
    optimizer = Sophia(model.parameters(), every=2)
    rule = SophiaCurvature(optimizer, sides=("retain",))
    first = next(iter(model.parameters()))
    seen = []
    for number in range(4):
        rule.on_step_begin(model, step_of(model, [batch], number))
        seen.append(optimizer.state[first]["hessian"].clone())
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])
    assert optimizer.param_groups[0]["bs"] == int(batch["retain"]["label_mask"].sum())


def test_empirical_gets_the_number_of_tokens_of_each_step(small: Any, lab: Any) -> None:
    model = small()
    optimizer = Sophia(model.parameters(), mode="empirical")
    side = lab.make_side(2, "c")
    SophiaCurvature(optimizer).on_step_begin(model, step_of(model, [{"forget": side}], 1))
    assert optimizer.param_groups[0]["bs"] == int(side["label_mask"].sum())


@pytest.mark.parametrize("mode", ["gnb", "hutchinson", "empirical", "off"])
def test_sophia_trains(small: Any, lab: Any, mode: Any) -> None:
    model = small()
    before = lab.weights(model)
    optimizer = Sophia(model.parameters(), 1e-3, mode=mode, every=2)
    rule = SophiaCurvature(optimizer)
    lab.train(model, optimizer, [rule], 3)
    after = lab.weights(model)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert not lab.same_bits(before, after)
    assert 0 <= rule.metrics()["win_rate"] <= 1
