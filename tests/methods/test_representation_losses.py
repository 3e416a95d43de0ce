"""Losses on hidden states: RMU, adaptive RMU, embed_diff, circuit breakers.

Formulas, masks, degenerate rows, half precision, and the objective.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from expunge.core.errors import UserError
from expunge.methods.adaptive_rmu import adaptive_rmu
from expunge.methods.objective import build_objective
from expunge.methods.representation import counted_tokens
from expunge.methods.retain import embed_diff
from expunge.methods.rmu import rmu
from expunge.methods.rr import rr, rr_retain

RMU = "expunge.methods.rmu:rmu"
COUNTS = (4, 2, 1, 0)
MASK_BT = torch.arange(6) < torch.tensor(COUNTS).unsqueeze(-1)
MASK_BT = MASK_BT.roll(2, -1)
ATTENTION_BT = torch.ones(4, 6, dtype=torch.bool)
CONTROL_D = torch.tensor([0.6, 0.0, 0.8])


def states(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(
        *(shape or (4, 6, 3)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def layers(seed: int) -> torch.Tensor:
    return states(seed, 2, 4, 6, 3)


LOSSES: dict[str, Any] = {
    "rmu": lambda h, ref, mask: rmu(h[0], CONTROL_D, mask, ATTENTION_BT),
    "adaptive_rmu": lambda h, ref, mask: adaptive_rmu(h[0], ref[0], CONTROL_D, mask, ATTENTION_BT),
    "embed_diff": lambda h, ref, mask: embed_diff(h[0], ref[0], mask, ATTENTION_BT),
    "rr": lambda h, ref, mask: rr(h, ref, mask, ATTENTION_BT),
    "rr_retain": lambda h, ref, mask: rr_retain(h, ref, mask, ATTENTION_BT),
}


def test_rmu_by_hand():
    """c 2, u (.6, 0, .8): target (1.2, 0, 1.6).

    Token (1.2, 3, 1.6): 9 / 3 = 3; token (0, 0, 0): 4 / 3; the mean is 13 / 6.
    """
    hidden_BTD = torch.tensor([[[9.0, 9.0, 9.0], [1.2, 3.0, 1.6], [0.0, 0.0, 0.0]]])
    mask_BT, all_BT = torch.tensor([[False, True, True]]), torch.ones(1, 3, dtype=torch.bool)
    prompt_BT = torch.tensor([[False, True, True]])
    longer_BTD = torch.cat([torch.zeros(1, 1, 3), hidden_BTD], 1)
    value_B = rmu(
        longer_BTD, CONTROL_D, torch.cat([prompt_BT[:, :1], mask_BT], 1), torch.ones(1, 4, dtype=torch.bool)
    )
    assert value_B.item() == pytest.approx(13 / 6, abs=1e-6)
    assert embed_diff(hidden_BTD, torch.zeros_like(hidden_BTD), mask_BT, all_BT).item() == pytest.approx(
        ((1.44 + 9 + 2.56) / 3 + 81) / 3
    )


def test_all_tokens_of_plain_text_count_and_padding_does_not():
    """All tokens except the first are labels: text, the first counts, too. A prompt of two: only labels."""
    mask_BT = torch.tensor([[False, True, True, False], [False, False, True, True]])
    attention_BT = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert counted_tokens(mask_BT, attention_BT).tolist() == [
        [True, True, True, False],
        [False, False, True, True],
    ]


def test_adaptive_rmu_is_rmu_with_each_tokens_own_coefficient():
    hidden_BTD, ref_BTD = states(0), states(1)
    value_B = adaptive_rmu(hidden_BTD, ref_BTD, CONTROL_D.double(), MASK_BT, ATTENTION_BT, scale=5.0)
    for row, count in enumerate(COUNTS):
        parts = [
            sum(
                (
                    float(hidden_BTD[row, t, d])
                    - 5.0 * math.hypot(*ref_BTD[row, t].tolist()) * float(CONTROL_D[d])
                )
                ** 2
                for d in range(3)
            )
            / 3
            for t in range(6)
            if MASK_BT[row, t]
        ]
        assert value_B[row].item() == pytest.approx(sum(parts) / count if count else 0.0, rel=1e-6)


def test_rr_by_hand():
    """Right angle 0, same direction 1, opposite 0 (relu). Two layers, two tokens: (1 + 0 + 0 + 1) / 4."""
    then_LBTD = torch.tensor(
        [[[[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]], [[[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 2, 0]]]]
    )
    now_LBTD = torch.tensor(
        [[[[5.0, 5, 5], [5, 5, 5], [3, 0, 0], [1, 0, 0]]], [[[5, 5, 5], [5, 5, 5], [0, 0, -1], [0, 7, 0]]]]
    )
    mask_BT, attention_BT = torch.tensor([[False, False, True, True]]), torch.ones(1, 4, dtype=torch.bool)
    assert rr(now_LBTD, then_LBTD, mask_BT, attention_BT).item() == pytest.approx(0.5)
    # Distances 2, sqrt 2; 2, 5.
    expected = (2 + math.sqrt(2) + 2 + 5) / 4
    assert rr_retain(now_LBTD, then_LBTD, mask_BT, attention_BT).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_states_change_nothing_and_masked_rows_are_zero(name: str):
    now, then = layers(2).requires_grad_(), layers(3)
    value_B = LOSSES[name](now, then, MASK_BT)
    assert value_B.shape == (4,)
    assert value_B[3] == 0
    (gradient,) = torch.autograd.grad(value_B.sum(), now)
    assert (gradient[:, ~MASK_BT] == 0).all()
    assert gradient[0][2, 2].abs().sum() > 0 or name == "rr"
    for junk in (1e6, math.inf, math.nan):
        noisy, other = (
            torch.where(MASK_BT.unsqueeze(-1), item.detach(), torch.full_like(item, junk))
            for item in (now, then)
        )
        torch.testing.assert_close(LOSSES[name](noisy, other, MASK_BT), value_B.detach())


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_float32_and_finite(name: str):
    now = (50 * layers(2)).bfloat16().requires_grad_()
    value_B = LOSSES[name](now, (50 * layers(3)).bfloat16(), MASK_BT)
    assert value_B.dtype == torch.float32
    assert value_B.isfinite().all()
    value_B.sum().backward()
    assert now.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_lowers_the_loss(name: str):
    now, then = layers(2).requires_grad_(), layers(3)
    value = LOSSES[name](now, then, MASK_BT).sum()
    (gradient,) = torch.autograd.grad(value, now)
    assert LOSSES[name](now - 1e-2 * gradient, then, MASK_BT).sum() < value


@pytest.mark.parametrize("name", ["embed_diff", "rr_retain"])
def test_retain_terms_are_zero_with_zero_gradient_at_the_reference(name: str):
    now = layers(4).requires_grad_()
    value = LOSSES[name](now, now.detach(), MASK_BT).sum()
    (gradient,) = torch.autograd.grad(value, now)
    assert value == 0
    assert (gradient == 0).all()


def test_the_fields_ratio_is_its_outer_quotient():
    """[B] sums over [B, 1] counts, averaged over [B, B], as in the public code; not per sequence."""
    hidden_BTD, rows = states(5)[:3], MASK_BT[:3]
    square_BT = ((hidden_BTD - 2.0 * CONTROL_D) ** 2).mean(-1)
    theirs = ((square_BT * rows).sum(1) / rows.sum(-1, keepdim=True)).mean()
    ours = rmu(hidden_BTD, CONTROL_D, rows, ATTENTION_BT[:3], ratio="batch").mean()
    torch.testing.assert_close(ours, theirs)
    assert abs(rmu(hidden_BTD, CONTROL_D, rows, ATTENTION_BT[:3]).mean() - theirs) > 0.01 * theirs


def test_the_control_vector_is_drawn_once_from_the_seed_and_kept(tiny_model: Any):
    def prepared(seed: int) -> Any:
        objective = build_objective(RMU, {"module_regex": r"model\.layers\.1"})
        objective.prepare(tiny_model(), seed)
        return objective

    first, again, other = prepared(0), prepared(0), prepared(1)
    control_D = first.given(torch.device("cpu"))["control_D"]
    assert control_D.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert (control_D >= 0).all()
    assert torch.equal(control_D, again.given(torch.device("cpu"))["control_D"])
    assert not torch.equal(control_D, other.given(torch.device("cpu"))["control_D"])
    other.load_state_dict(first.state_dict())
    assert torch.equal(control_D, other.given(torch.device("cpu"))["control_D"])
    with pytest.raises(UserError, match="no control vector"):
        other.load_state_dict({})


def test_only_the_parameters_named_stay_trained(tiny_model: Any):
    model = tiny_model()
    pattern = r"model\.layers\.(0|1)\.mlp\.down_proj\.weight"
    build_objective(RMU, {"module_regex": r"model\.layers\.1", "trainable_params_regex": [pattern]}).prepare(
        model, 0
    )
    assert [name for name, item in model.named_parameters() if item.requires_grad] == [
        f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)
    ]


@pytest.mark.parametrize(
    ("retain", "moving"), [("embed_diff", ["layers.0"]), ("nll", ["layers.0", "layers.1", "norm"])]
)
def test_what_the_loss_cannot_reach_is_frozen(tiny_model: Any, retain: str, moving: list[str]):
    """With only layer 0's hidden states no later layer moves; with a retain term on logits all layers do."""
    model = tiny_model()
    build_objective(RMU, {"module_regex": r"model\.layers\.0", "retain": retain}).prepare(model, 0)
    trained = {
        ".".join(name.split(".")[1:3]) for name, item in model.named_parameters() if item.requires_grad
    } - {"embed_tokens.weight"}
    assert sorted(name.removesuffix(".weight") for name in trained) == moving


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        ({"module_regex": r"model\.layer\.1"}, "matches no module", r"model\.layers\.1"),
        ({"module_regex": r"model\.layers\.\d"}, "matches 2 modules", "exactly one"),
        ({"module_regex": "("}, "not a regular expression", ""),
        (
            {"module_regex": r"model\.layers\.1", "trainable_params_regex": [r"model\.layers\.1\.mlp\.down"]},
            "matches no trained parameter",
            "down_proj",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_or_too_much_is_reported_with_similar_names(
    tiny_model: Any, args: dict, message: str, hint: str
):
    with pytest.raises(UserError, match=message) as error:
        build_objective(RMU, args).prepare(tiny_model(), 0)
    assert hint.replace("\\", "") in str(error.value).replace("\\", "")


def test_terms_that_read_different_modules_are_refused():
    retain = {"handler": "embed_diff", "module_regex": r"model\.layers\.0"}
    with pytest.raises(UserError, match="give the same pattern to both"):
        build_objective(RMU, {"retain": retain})
    with pytest.raises(UserError, match="module_regex is not given"):
        build_objective("expunge.methods.npo:npo", {"retain": "embed_diff"})
    assert build_objective("expunge.methods.npo:npo", {"retain": retain}).hidden == r"model\.layers\.0"
    with pytest.raises(UserError, match="reads one module"):
        build_objective("expunge.methods.rr:rr", {"retain": "embed_diff"})


def test_rr_reads_several_modules_by_default_or_one():
    objective = build_objective("expunge.methods.rr:rr", {"module_regex": r"model\.layers\.1"})
    assert objective.hidden == (r"model\.layers\.1",)
    assert len(build_objective("expunge.methods.rr:rr", {}).hidden) == 2
