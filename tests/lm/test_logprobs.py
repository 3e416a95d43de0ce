from __future__ import annotations

import math

import pytest
import torch

from expunge.lm.logprobs import masked, masked_mean, masked_sum, token_logp, token_statistics

INF = float("inf")


def test_token_logp_by_hand():
    """Logits (0, ln 3): p = 1/4 and 3/4."""
    logits_BNV = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]]])
    logp_BN = token_logp(logits_BNV, torch.tensor([[0, 1]]))
    torch.testing.assert_close(logp_BN, torch.tensor([[math.log(0.25), math.log(0.75)]]))


def test_token_logp_equals_torch_cross_entropy_and_is_float32_for_bf16():
    generator = torch.Generator().manual_seed(1)
    logits_BNV = torch.randn(3, 5, 11, generator=generator) * 10
    label_BN = torch.randint(0, 11, (3, 5), generator=generator)
    expected_BN = -torch.nn.functional.cross_entropy(logits_BNV.transpose(1, 2), label_BN, reduction="none")
    torch.testing.assert_close(token_logp(logits_BNV, label_BN), expected_BN)
    half = token_logp(logits_BNV.bfloat16(), label_BN)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, token_logp(logits_BNV.bfloat16().float(), label_BN))
    assert token_logp(logits_BNV.double(), label_BN).dtype == torch.float64


def test_masked_reductions_ignore_masked_values_that_are_not_finite():
    value_BN = torch.tensor([[1.0, 3.0, math.nan], [-INF, 2.0, INF]], requires_grad=True)
    mask_BN = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_sum(value_BN, mask_BN).tolist() == [4.0, 0.0]
    assert masked_mean(value_BN, mask_BN).tolist() == [2.0, 0.0]
    assert masked(value_BN, mask_BN).tolist() == [[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]]
    masked_sum(value_BN, mask_BN).sum().backward()
    assert value_BN.grad is not None
    assert value_BN.grad.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_token_statistics_by_hand():
    """p = (1/4, 3/4): mu = .25 ln .25 + .75 ln .75 = -.562335.

    var = p(1-p) (ln 3)^2 = .1875 * 1.206949 = .226303.
    """
    statistics = token_statistics(torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[0]]))
    assert statistics.logp_BN.item() == pytest.approx(math.log(0.25), abs=1e-6)
    assert statistics.mu_BN.item() == pytest.approx(-0.562335, abs=1e-6)
    assert statistics.var_BN.item() == pytest.approx(0.226303, abs=1e-6)
    assert not statistics.hit_BN.item()


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_token_statistics_equal_brute_force_in_float64(scale: float):
    generator = torch.Generator().manual_seed(2)
    logits_BNV = torch.randn(2, 9, 101, generator=generator) * scale
    label_BN = torch.randint(0, 101, (2, 9), generator=generator)
    found = token_statistics(logits_BNV, label_BN)
    for row in range(2):
        for place in range(9):
            logits = logits_BNV[row, place].double()
            p = (logits - logits.max()).exp() / (logits - logits.max()).exp().sum()
            logp = logits - logits.max() - (logits - logits.max()).exp().sum().log()
            mu = float((p * logp).sum())
            assert found.logp_BN[row, place].item() == pytest.approx(
                float(logp[label_BN[row, place]]), rel=1e-5, abs=1e-5
            )
            assert found.mu_BN[row, place].item() == pytest.approx(mu, rel=1e-5, abs=1e-5)
            assert found.var_BN[row, place].item() == pytest.approx(
                float((p * (logp - mu) ** 2).sum()), rel=1e-3, abs=1e-7
            )
            assert found.hit_BN[row, place].item() == (int(logits.argmax()) == int(label_BN[row, place]))


def test_token_statistics_do_not_depend_on_the_chunk():
    generator = torch.Generator().manual_seed(3)
    logits_BNV = torch.randn(2, 10, 17, generator=generator)
    label_BN = torch.randint(0, 17, (2, 10), generator=generator)
    whole = token_statistics(logits_BNV, label_BN, chunk=128)
    for chunk in (1, 3, 10):
        for one, other in zip(whole, token_statistics(logits_BNV, label_BN, chunk=chunk), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_variance_is_never_negative_and_impossible_tokens_add_nothing():
    uniform_BNV = torch.full((1, 1, 50000), 3.0)
    assert token_statistics(uniform_BNV, torch.zeros(1, 1, dtype=torch.long)).var_BN.item() >= 0
    logits_BNV = torch.tensor([[[0.0, math.log(3), -INF]]])
    found = token_statistics(logits_BNV, torch.tensor([[1]]))
    assert found.mu_BN.item() == pytest.approx(-0.562335, abs=1e-6)
    assert found.var_BN.item() == pytest.approx(0.226303, abs=1e-6)
