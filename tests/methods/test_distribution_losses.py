"""Losses on whole next-token distributions: KL and UNDIAL."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.methods.forget_kl import forget_kl
from expunge.methods.retain import kl
from expunge.methods.undial import undial


def draw(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_is_weighted_by_the_reference():
    """theta = (1/2, 1/2), ref = (1/4, 3/4): KL(ref || theta) = .75 ln 3 - ln 2 = .130812.

    KL(theta || ref) would be .143841.
    """
    theta_BNV, ref_BNV = torch.zeros(1, 1, 2), torch.tensor([[[0.0, math.log(3)]]])
    assert kl(theta_BNV, ref_BNV).item() == pytest.approx(0.130812, abs=1e-6)
    assert forget_kl(theta_BNV, ref_BNV).item() == pytest.approx(-0.130812, abs=1e-6)


def test_kl_equals_a_loop():
    theta_BNV, ref_BNV = draw(0), draw(1)
    found_BN = kl(theta_BNV, ref_BNV)
    for row in range(3):
        for place in range(4):
            p, q = ref_BNV[row, place].softmax(-1), theta_BNV[row, place].softmax(-1)
            expected = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
            assert found_BN[row, place].item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(forget_kl(theta_BNV, ref_BNV), -found_BN)


def test_kl_with_itself_is_zero_with_zero_gradient():
    theta_BNV = draw(2).float().requires_grad_()
    for term in (kl, forget_kl):
        value_BN = term(theta_BNV, theta_BNV.detach())
        assert value_BN.abs().max() < 1e-6
        (gradient,) = torch.autograd.grad(value_BN.sum(), theta_BNV)
        assert gradient.abs().max() < 1e-6


def test_kl_pulls_towards_the_reference_and_forget_kl_away():
    """d KL(ref || theta) / d z_theta = p_theta - p_ref."""
    theta_BNV, ref_BNV = draw(3).requires_grad_(), draw(4)
    (gradient,) = torch.autograd.grad(kl(theta_BNV, ref_BNV).sum(), theta_BNV)
    expected = theta_BNV.detach().softmax(-1) - ref_BNV.softmax(-1)
    torch.testing.assert_close(gradient, expected)
    (away,) = torch.autograd.grad(forget_kl(theta_BNV, ref_BNV).sum(), theta_BNV)
    torch.testing.assert_close(away, -expected)


def test_undial_by_hand():
    """Two tokens, z_ref = (ln 6, 0), y = 0, beta = ln 2: teacher (3/4, 1/4); theta uniform: CE = ln 2.

    With theta = (1/4, 3/4) the CE is 3/4 ln 4 + 1/4 ln(4/3) = 1.111641.
    """
    ref_BNV, label_BN = torch.tensor([[[math.log(6), 0.0]]]), torch.tensor([[0]])
    assert undial(torch.zeros(1, 1, 2), ref_BNV, label_BN, beta=math.log(2)).item() == pytest.approx(
        math.log(2), abs=1e-6
    )
    theta_BNV = torch.tensor([[[0.0, math.log(3)]]])
    assert undial(theta_BNV, ref_BNV, label_BN, beta=math.log(2)).item() == pytest.approx(1.111641, abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_undial_equals_its_formula_and_its_gradient_is_p_minus_teacher(beta: float):
    theta_BNV, ref_BNV = draw(5).requires_grad_(), draw(6)
    label_BN = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(7))
    teacher_BNV = (ref_BNV - beta * torch.nn.functional.one_hot(label_BN, 9)).softmax(-1)
    expected_BN = torch.nn.functional.cross_entropy(
        theta_BNV.flatten(0, 1), teacher_BNV.flatten(0, 1), reduction="none"
    ).view(3, 4)
    value_BN = undial(theta_BNV, ref_BNV, label_BN, beta=beta)
    torch.testing.assert_close(value_BN, expected_BN)
    (gradient,) = torch.autograd.grad(value_BN.sum(), theta_BNV)
    torch.testing.assert_close(gradient, theta_BNV.detach().softmax(-1) - teacher_BNV)


def test_undial_without_strength_is_distillation_at_rest():
    """beta = 0 and theta = ref: the gradient is zero."""
    theta_BNV = draw(8).requires_grad_()
    label_BN = torch.zeros(3, 4, dtype=torch.long)
    (gradient,) = torch.autograd.grad(
        undial(theta_BNV, theta_BNV.detach(), label_BN, beta=0.0).sum(), theta_BNV
    )
    assert gradient.abs().max() < 1e-12
