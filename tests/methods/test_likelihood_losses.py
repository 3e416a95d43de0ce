"""Losses on the log-probs of labels: numbers by hand, formulas retyped from the papers, identities."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.lm.logprobs import masked_sum
from expunge.methods.cl import cl
from expunge.methods.dpo import dpo
from expunge.methods.finetune import finetune
from expunge.methods.grad_ascent import grad_ascent
from expunge.methods.grad_diff import grad_diff
from expunge.methods.npo import npo
from expunge.methods.retain import nll
from expunge.methods.rl import rl
from expunge.methods.satimp import satimp
from expunge.methods.simnpo import simnpo
from expunge.methods.wga import wga

LN2 = math.log(2)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return -torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 0.05


@pytest.mark.parametrize(
    ("ascent", "sign"), [(grad_ascent, 1), (grad_diff, 1), (finetune, -1), (nll, -1), (cl, -1), (rl, -1)]
)
def test_plain_cross_entropies(ascent, sign):
    """p = 1/2 and 1/4: ascent gives (-ln 2, -2 ln 2), -CE over 2 labels = -1.5 ln 2; descent: negated."""
    value_BN = ascent(torch.tensor([[math.log(0.5), math.log(0.25)]]))
    torch.testing.assert_close(value_BN, sign * torch.tensor([[-LN2, -2 * LN2]]))


def test_npo_by_hand():
    """beta = 2, log p = -1, log p_ref = -1 + ln(3)/2: ratio^beta = 1/3, L = (2/2) ln(1 + 1/3) = .287682."""
    value = npo(torch.tensor([-1.0]), torch.tensor([-1.0 + math.log(3) / 2]), beta=2.0)
    assert value.item() == pytest.approx(0.287682, abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 4.0])
def test_npo_equals_the_papers_second_form(beta: float):
    """(2 / beta) E log(1 + (p_theta / p_ref)^beta), with probabilities instead of their logarithms."""
    logp_BN, ref_BN = draw(0, 5, 7), draw(1, 5, 7)
    ratio_B = logp_BN.exp().prod(-1) / ref_BN.exp().prod(-1)
    torch.testing.assert_close(
        npo(logp_BN.sum(-1), ref_BN.sum(-1), beta=beta), 2 / beta * (1 + ratio_B**beta).log()
    )


@pytest.mark.parametrize("beta", [0.01, 0.1, 3.0])
def test_npo_at_the_reference_has_the_gradient_of_the_per_sequence_sum(beta: float):
    """Each token's gradient is +1 for rows of any length.

    So it is not that of the mean over a row's tokens, and not that of the mean over the batch's tokens.
    """
    logp_BN = draw(2, 3, 5).requires_grad_()
    mask_BN = torch.arange(5) < torch.tensor([[5], [2], [1]])
    seq_B = torch.where(mask_BN, logp_BN, 0.0).sum(-1)
    value_B = npo(seq_B, seq_B.detach(), beta=beta)
    torch.testing.assert_close(value_B, torch.full_like(value_B, 2 / beta * LN2))
    (gradient,) = torch.autograd.grad(value_B.sum(), logp_BN)
    torch.testing.assert_close(gradient, mask_BN.double())


def test_npo_gradient_vanishes_for_forgotten_answers():
    """The gradient's weight is 2 r^beta / (1 + r^beta), r = p_theta / p_ref: 1 at r = 1, 0 for r -> 0."""
    seq_B = torch.tensor([0.0, -10.0, -200.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(npo(seq_B, torch.zeros(3), beta=0.1).sum(), seq_B)
    expected = [2 * math.exp(0.1 * x) / (1 + math.exp(0.1 * x)) for x in (0.0, -10.0, -200.0)]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_simnpo_by_hand():
    """beta = 2, 4 tokens, log p = -2 ln 3, so nll per token is ln(3)/2.

    delta = 0: L = -ln sigmoid(ln 3) = -ln(3/4) = .287682. delta = ln(3)/2: the argument is 0, L = ln 2.
    """
    seq_B, len_B = torch.tensor([-2 * math.log(3)]), torch.tensor([4])
    assert simnpo(seq_B, len_B, beta=2.0).item() == pytest.approx(0.287682, abs=1e-6)
    assert simnpo(seq_B, len_B, beta=2.0, delta=math.log(3) / 2).item() == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize(("beta", "delta"), [(4.5, 0.0), (2.5, 0.0), (1.0, 0.5)])
def test_simnpo_equals_the_papers_form_with_its_margin_beta_times_delta(beta: float, delta: float):
    seq_B, len_B = draw(3, 6) * 9, torch.tensor([1, 2, 3, 4, 5, 60])
    printed_B = torch.tensor(
        [
            -2 / beta * math.log(1 / (1 + math.exp(-(-beta / n * s - beta * delta))))
            for s, n in zip(seq_B.tolist(), len_B.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(simnpo(seq_B, len_B, beta=beta, delta=delta).float(), printed_B)


def test_simnpo_for_small_beta_has_the_gradient_of_the_per_sequence_mean():
    seq_B, len_B = (draw(4, 4) * 5).requires_grad_(), torch.tensor([1, 3, 7, 2])
    (gradient,) = torch.autograd.grad(simnpo(seq_B, len_B, beta=1e-6).sum(), seq_B)
    torch.testing.assert_close(gradient, 1 / len_B.double(), rtol=1e-5, atol=0)


def test_grad_ascent_has_the_gradient_of_the_batch_token_mean():
    """The third of three gradients with the name GA: 1 / (labels of the batch) for each label, in any row."""
    logp_BN = draw(5, 2, 4).requires_grad_()
    mask_BN = torch.tensor([[True] * 4, [True] + [False] * 3])
    (gradient,) = torch.autograd.grad(
        masked_sum(grad_ascent(logp_BN), mask_BN).sum() / mask_BN.sum(), logp_BN
    )
    torch.testing.assert_close(gradient, mask_BN.double() / 5)


def test_dpo_by_hand():
    """beta = 1: log-ratios ln 2 (alternate), -ln(3/2) (forget): L = -2 ln sigmoid(ln 3) = .575364."""
    value = dpo(
        torch.tensor([-5.0]),
        torch.tensor([-4.0 + LN2]),
        torch.tensor([-5.0 + math.log(1.5)]),
        torch.tensor([-4.0]),
        beta=1.0,
    )
    assert value.item() == pytest.approx(0.575364, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_equals_the_definition(beta: float):
    """-(2 / beta) log [w^beta / (w^beta + l^beta)].

    w and l are the probability ratios of the preferred and the dispreferred answer.
    """
    forget_B, alternate_B, ref_forget_B, ref_alternate_B = (draw(seed, 6) * 4 for seed in range(4))
    w_B, l_B = (alternate_B - ref_alternate_B).exp(), (forget_B - ref_forget_B).exp()
    expected_B = -2 / beta * (w_B**beta / (w_B**beta + l_B**beta)).log()
    torch.testing.assert_close(
        dpo(forget_B, alternate_B, ref_forget_B, ref_alternate_B, beta=beta), expected_B
    )


def test_dpo_raises_the_alternate_and_lowers_the_forget_answer():
    forget_B, alternate_B = torch.tensor([-3.0], requires_grad=True), torch.tensor([-9.0], requires_grad=True)
    down_forget, down_alternate = torch.autograd.grad(
        dpo(forget_B, alternate_B, torch.tensor([-3.0]), torch.tensor([-9.0])), (forget_B, alternate_B)
    )
    assert down_forget.item() == pytest.approx(1.0)
    assert down_alternate.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_with_equal_alternates_is_constant_with_zero_gradient(beta: float):
    seq_B, ref_B = draw(6, 3).requires_grad_(), draw(7, 3)
    value_B = dpo(seq_B, seq_B, ref_B, ref_B, beta=beta)
    torch.testing.assert_close(value_B, torch.full_like(value_B, 2 / beta * LN2))
    (gradient,) = torch.autograd.grad(value_B.sum(), seq_B)
    assert (gradient == 0).all()


def test_npo_is_dpo_without_a_preferred_answer():
    """With a log-ratio of 0 for the alternate, DPO's argument is NPO's."""
    seq_B, ref_B = draw(8, 4), draw(9, 4)
    torch.testing.assert_close(dpo(seq_B, ref_B, ref_B, ref_B, beta=0.3), npo(seq_B, ref_B, beta=0.3))


def test_extreme_log_ratios_stay_finite():
    seq_B, ref_B = torch.tensor([-1e4, 1e4]), torch.zeros(2)
    assert npo(seq_B, ref_B, beta=1.0).tolist() == [0.0, 2e4]
    assert dpo(seq_B, ref_B, ref_B, ref_B, beta=1.0).tolist() == [0.0, 2e4]


def test_wga_by_hand():
    """p = 1/4: beta 1 gives 1/4 ln(1/4) = -.346574, beta 0.5 gives 1/2 ln(1/4) = -ln 2."""
    logp_BN = torch.tensor([[math.log(0.25)]])
    assert wga(logp_BN).item() == pytest.approx(-0.346574, abs=1e-6)
    assert wga(logp_BN, beta=0.5).item() == pytest.approx(-LN2, abs=1e-6)


def test_satimp_by_hand():
    """p = 1/2, beta1 = 5, beta2 = 1: (1/32)(1/2) ln(1/2) = -.0108304."""
    assert satimp(torch.tensor([[-LN2]])).item() == pytest.approx(-0.0108304, abs=1e-7)


def test_weighted_ascents_equal_their_formulas_with_weights_without_gradient():
    logp_BN = draw(10, 3, 4).requires_grad_()
    p_BN = logp_BN.detach().exp()
    for value_BN, weight_BN in (
        (wga(logp_BN, beta=0.7), p_BN.pow(0.7)),
        (satimp(logp_BN, beta1=2.0, beta2=0.5), p_BN.pow(2.0) * (1 - p_BN).pow(0.5)),
    ):
        torch.testing.assert_close(value_BN, -weight_BN * -logp_BN)
        (gradient,) = torch.autograd.grad(value_BN.sum(), logp_BN)
        torch.testing.assert_close(gradient, weight_BN)


def test_weighted_ascents_are_gradient_ascent_at_exponent_0():
    logp_BN = draw(11, 2, 3)
    plain_BN = grad_ascent(logp_BN)
    torch.testing.assert_close(wga(logp_BN, beta=0.0), plain_BN)
    torch.testing.assert_close(satimp(logp_BN, beta1=0.0, beta2=0.0), plain_BN)


def test_satimp_of_a_certain_token_is_zero_and_finite():
    logp_BN = torch.zeros(1, 1, requires_grad=True)
    value_BN = satimp(logp_BN)
    (gradient,) = torch.autograd.grad(value_BN.sum(), logp_BN)
    assert (value_BN.item(), gradient.item()) == (0.0, 0.0)
