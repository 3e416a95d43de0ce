from __future__ import annotations

import math

import pytest
import torch

from expunge.lm.divergence import cross_entropy, kl

INF = float("inf")


def test_kl_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4).

    KL(p || q) = ln 2 - (ln 3) / 2 = .143841; KL(q || p) = .75 ln 3 - ln 2 = .130812.
    """
    p_BNV, q_BNV = torch.zeros(1, 1, 2), torch.tensor([[[0.0, math.log(3)]]])
    assert kl(p_BNV, q_BNV).item() == pytest.approx(0.143841, abs=1e-6)
    assert kl(q_BNV, p_BNV).item() == pytest.approx(0.130812, abs=1e-6)


def test_kl_equals_torch_and_is_zero_with_zero_gradient_at_equality():
    generator = torch.Generator().manual_seed(0)
    p_BNV, q_BNV = torch.randn(2, 3, 13, generator=generator), torch.randn(2, 3, 13, generator=generator)
    expected = torch.nn.functional.kl_div(
        q_BNV.log_softmax(-1), p_BNV.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl(p_BNV, q_BNV), expected)
    assert (kl(p_BNV, q_BNV) > 0).all()
    q_BNV.requires_grad_()
    same_BN = kl(q_BNV.detach(), q_BNV)
    assert same_BN.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(same_BN.sum(), q_BNV)
    assert gradient.abs().max() < 1e-6


def test_cross_entropy_is_kl_plus_entropy():
    generator = torch.Generator().manual_seed(1)
    p_BNV, q_BNV = torch.randn(2, 3, 13, generator=generator), torch.randn(2, 3, 13, generator=generator)
    entropy_BN = -(p_BNV.softmax(-1) * p_BNV.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(cross_entropy(p_BNV, q_BNV), kl(p_BNV, q_BNV) + entropy_BN)


def test_a_token_without_mass_adds_nothing():
    """p gives token 0 no mass: KL = ln 1 - ln(3/4) = .287682, with finite gradients in both cases."""
    p_BNV = torch.tensor([[[-INF, 0.0]]])
    q_BNV = torch.tensor([[[0.0, math.log(3)]]], requires_grad=True)
    for value in (kl(p_BNV, q_BNV), cross_entropy(p_BNV, q_BNV)):
        assert value.item() == pytest.approx(-math.log(0.75), abs=1e-6)
        (gradient,) = torch.autograd.grad(value.sum(), q_BNV)
        assert gradient.isfinite().all()


def test_half_precision_is_raised():
    p_BNV = torch.randn(1, 2, 7, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert kl(p_BNV, p_BNV * 2).dtype == torch.float32
    torch.testing.assert_close(kl(p_BNV, p_BNV * 2), kl(p_BNV.float(), (p_BNV * 2).float()))
