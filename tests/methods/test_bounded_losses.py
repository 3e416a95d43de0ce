"""Bounded losses on whole distributions: CE-U, PDU's forget term, maximal entropy, ELM's erase term."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, one_hot

from expunge.methods.ceu import ceu
from expunge.methods.elm import elm, prefixed
from expunge.methods.me import me
from expunge.methods.pdu import pdu

LABEL_BN = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(7))


def draw(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ceu_by_hand():
    """p = (1/2, 1/4, 1/4), y = 0: q = (0, 1/2, 1/2); CE = 1/2 ln 4 + 1/2 ln 4 = ln 4 = 1.386294."""
    logits_BNV = torch.tensor([[[math.log(2), 0.0, 0.0]]])
    assert ceu(logits_BNV, torch.tensor([[0]]), ignore_first_n_answer_tokens=0).item() == pytest.approx(
        math.log(4), abs=1e-6
    )


def test_ceu_equals_its_formula_and_its_gradient_is_p_minus_target():
    logits_BNV = draw(0).requires_grad_()
    target_BNV = logits_BNV.detach().softmax(-1) * (1 - one_hot(LABEL_BN, 9))
    target_BNV = target_BNV / target_BNV.sum(-1, keepdim=True)
    expected_BN = cross_entropy(logits_BNV.flatten(0, 1), target_BNV.flatten(0, 1), reduction="none").view(
        3, 4
    )
    value_BN = ceu(logits_BNV, LABEL_BN, ignore_first_n_answer_tokens=0)
    torch.testing.assert_close(value_BN, expected_BN)
    (gradient,) = torch.autograd.grad(value_BN.sum(), logits_BNV)
    torch.testing.assert_close(gradient, logits_BNV.detach().softmax(-1) - target_BNV)


def test_pdu_by_hand():
    """z = (3, 0, 0): max 3, mean 1: (3 - 1)^2 = 4. A constant added to all logits changes nothing."""
    logits_BNV = torch.tensor([[[3.0, 0.0, 0.0]]])
    assert pdu(logits_BNV, retain_loss_eps=0.3).item() == pytest.approx(4.0)
    assert pdu(logits_BNV + 5, retain_loss_eps=0.3).item() == pytest.approx(4.0)


def test_pdu_equals_a_loop_and_descends_to_flat_logits():
    logits_BNV = draw(1).requires_grad_()
    value_BN = pdu(logits_BNV, retain_loss_eps=0.3)
    for row in range(3):
        for place in range(4):
            z = logits_BNV[row, place].tolist()
            expected = (max(z) - sum(z) / 9) ** 2
            assert value_BN[row, place].item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(value_BN.sum(), logits_BNV)
    after_BN = pdu(logits_BNV - 0.05 * gradient, retain_loss_eps=0.3)
    assert (after_BN < value_BN).all()


def test_me_by_hand():
    """p = (1/2, 1/4, 1/4): H = 1.5 ln 2 = 1.039721; ln 3 - H = .058892.

    KL(u || p) = (ln 2/3 + 2 ln 4/3) / 3 = .056633.
    """
    logits_BNV = torch.tensor([[[math.log(2), 0.0, 0.0]]])
    assert me(logits_BNV).item() == pytest.approx(math.log(3) - 1.5 * math.log(2), abs=1e-6)
    assert me(logits_BNV, direction="from_uniform").item() == pytest.approx(
        (math.log(2 / 3) + 2 * math.log(4 / 3)) / 3, abs=1e-6
    )
    assert me(torch.full((1, 1, 3), 2.0)).item() == pytest.approx(0.0, abs=1e-7)


def test_me_is_the_entropy_and_the_authors_code_the_other_direction():
    logits_BNV = draw(2)
    entropy_BN = torch.distributions.Categorical(logits=logits_BNV).entropy()
    torch.testing.assert_close(me(logits_BNV), math.log(9) - entropy_BN)
    p_BNV = logits_BNV.softmax(-1)
    theirs_BN = kl_div((p_BNV + 1e-12).log(), torch.full_like(p_BNV, 1 / 9), reduction="none").sum(-1)
    torch.testing.assert_close(me(logits_BNV, direction="from_uniform"), theirs_BN)


@pytest.mark.parametrize("direction", ["from_model", "from_uniform"])
def test_me_descends_to_more_entropy(direction: str):
    logits_BNV = draw(3).requires_grad_()
    (gradient,) = torch.autograd.grad(me(logits_BNV, direction=direction).sum(), logits_BNV)
    before_BN = torch.distributions.Categorical(logits=logits_BNV).entropy()
    after_BN = torch.distributions.Categorical(logits=logits_BNV - 0.1 * gradient).entropy()
    assert (after_BN > before_BN).all()


def test_elm_by_hand():
    """ref and novice uniform, expert (4/5, 1/5), eta 1: q ~ (5/8, 5/2) -> (1/5, 4/5).

    theta uniform: ln 2; theta = q: the entropy of q.
    """
    flat_BNV, expert_BNV = torch.zeros(1, 1, 2), torch.tensor([[[math.log(4), 0.0]]])
    value = elm(flat_BNV, flat_BNV, expert_BNV, flat_BNV, concept="x", eta=1.0, top_k=None)
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)
    theta_BNV = torch.tensor([[[0.0, math.log(4)]]])
    expected = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert elm(
        theta_BNV, flat_BNV, expert_BNV, flat_BNV, concept="x", eta=1.0, top_k=None
    ).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("top_k", [None, 3])
def test_elm_equals_its_formula_and_its_gradient_is_p_minus_target(top_k: int | None):
    theta_BNV, ref_BNV, expert_BNV, novice_BNV = draw(4).requires_grad_(), draw(5), draw(6), draw(7)
    weight_BNV = ref_BNV.softmax(-1) * (novice_BNV.softmax(-1) / expert_BNV.softmax(-1)) ** 1.5
    if top_k is not None:
        weight_BNV = weight_BNV * (
            weight_BNV >= weight_BNV.sort(-1, descending=True).values[..., top_k - 1 : top_k]
        )
    target_BNV = weight_BNV / weight_BNV.sum(-1, keepdim=True)
    value_BN = elm(theta_BNV, ref_BNV, expert_BNV, novice_BNV, concept="x", eta=1.5, top_k=top_k)
    torch.testing.assert_close(value_BN, -(target_BNV * theta_BNV.log_softmax(-1)).sum(-1))
    (gradient,) = torch.autograd.grad(value_BN.sum(), theta_BNV)
    torch.testing.assert_close(gradient, theta_BNV.detach().softmax(-1) - target_BNV)


def test_a_beginning_is_inserted_after_the_bos_and_no_label_changes():
    side = {
        "input_ids": torch.tensor([[1, 5, 6, 7], [1, 8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "label_mask": torch.tensor([[False, False, True, True], [False, True, True, False]]),
        "row": torch.tensor([3, 4]),
    }
    other = prefixed(side, (20, 21), bos=1)
    assert other["input_ids"].tolist() == [[1, 20, 21, 5, 6, 7], [1, 20, 21, 8, 9, 0]]
    assert other["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert other["input_ids"][other["label_mask"]].tolist() == side["input_ids"][side["label_mask"]].tolist()
    assert prefixed(side, (20,), bos=None)["input_ids"][:, 0].tolist() == [20, 20]
