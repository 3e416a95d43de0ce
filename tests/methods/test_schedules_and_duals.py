"""Weights that change during training: schedules and PDU's multiplier; micro-batches, resumed runs."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.core.errors import UserError
from expunge.methods.objective import StepInfo, build_objective
from expunge.methods.schedule import constant, fade, ramp, reroute, switch

GRAD_DIFF, PDU = "expunge.methods.grad_diff:grad_diff", "expunge.methods.pdu:pdu"


def at(epoch: float, epochs: float = 4, step: int = 0, steps: int = 8) -> StepInfo:
    return StepInfo(step, steps, epoch, epochs)


def test_the_retain_weight_ramps_by_whole_epochs_from_zero():
    """epoch / num_epochs of 4 epochs: 0, 1/4, 2/4, 3/4; a fraction of an epoch changes nothing."""
    assert [ramp(at(epoch)).retain for epoch in (0.0, 0.5, 1.0, 1.99, 2.0, 3.0)] == [
        0,
        0,
        0.25,
        0.25,
        0.5,
        0.75,
    ]
    assert ramp(at(0.1 + 0.2 + 0.7)).retain == 0.25
    assert ramp(at(2.0)).own == 1


def test_switch_and_reroute_by_hand():
    """Steps of reroute count from 1, as in the paper's algorithm.

    Of 8 steps, the first has t = 1/16, the fourth 4/16, the last 1/2.
    """
    assert [tuple(switch(at(epoch))) for epoch in (0.0, 1.9, 2.0)] == [(1, 0), (1, 0), (0, 1)]
    assert tuple(switch(at(1.0), at=0.25)) == (0, 1)
    assert [tuple(reroute(at(0, step=step))) for step in (0, 3, 7)] == [
        (0.9375, 0.0625),
        (0.75, 0.25),
        (0.5, 0.5),
    ]
    assert tuple(constant(at(1))) == (1, 1)


def test_a_penalty_fades_by_whole_epochs():
    """4 epochs: 1, 3/4, 1/2, 1/4; without a penalty in the last half: 1, 1/2, 0, 0. The retain term stays."""
    assert [fade(at(epoch)).own for epoch in (0.0, 0.9, 1.0, 2.5, 3.0)] == [1, 1, 0.75, 0.5, 0.25]
    assert [fade(at(epoch), until=0.5).own for epoch in (0.0, 1.0, 2.0, 3.0)] == [1, 0.5, 0, 0]
    assert fade(at(3.0)).retain == 1
    objective = build_objective("expunge.methods.l1_sparse:l1_sparse", {"alpha_l1": 0.1, "schedule": "fade"})
    objective.begin_step(at(1.0))
    assert [term.weight for term in objective.terms] == [0.75, 1.0]


@pytest.mark.parametrize(
    "choice", ["ramp", {"handler": "ramp"}, {"handler": "expunge.methods.schedule:ramp"}]
)
def test_an_objective_follows_its_schedule(choice: Any):
    objective = build_objective(GRAD_DIFF, {"gamma": 0.5, "alpha": 2.0, "schedule": choice})
    for epoch, expected in ((0.0, 0.0), (1.0, 0.5), (3.0, 1.5), (0.0, 0.0)):
        objective.begin_step(at(epoch))
        assert [term.weight for term in objective.terms] == [0.5, expected]
    assert objective.report() == {"weight_grad_diff": 0.5, "weight_retain_nll": 0.0}


def test_no_schedule_and_invalid_schedules():
    for choice in (
        None,
        "constant",
        "none",
        {"handler": None},
        {"handler": "expunge.methods.schedule:constant"},
    ):
        assert build_objective(GRAD_DIFF, {"schedule": choice}).schedule is None
    assert build_objective(GRAD_DIFF, {}).report() == {}
    with pytest.raises(UserError, match="did you mean 'ramp'"):
        build_objective(GRAD_DIFF, {"schedule": "rmap"})
    with pytest.raises(UserError, match=r"schedule\.after=1: switch takes no 'after'"):
        build_objective(GRAD_DIFF, {"schedule": {"handler": "switch", "after": 1}})
    with pytest.raises(UserError, match=r"schedule\.at=half: must be a number"):
        build_objective(GRAD_DIFF, {"schedule": {"handler": "switch", "at": "half"}})


def test_a_ramped_run_has_no_retain_term_in_its_first_epoch(run: Any):
    """8 rows in batches of 4, two steps per epoch: the first two records have no retain term."""
    history = run(
        GRAD_DIFF,
        {"schedule": "ramp", "alpha": 3.0},
        steps=-1,
        num_train_epochs=3,
        per_device_train_batch_size=4,
    ).trainer.state.log_history
    records = [record for record in history if "grad_diff" in record]
    assert ["retain_nll" in record for record in records] == [False, False, True, True, True, True]
    assert [record["weight_retain_nll"] for record in records] == pytest.approx([0, 0, 1, 1, 2, 2])


def pdu(**args: Any) -> Any:
    return build_objective(
        PDU, {"retain_loss_eps": 0.5, "dual_warmup_epochs": 0, "alpha": 2.0, "dual_step_size": 4.0, **args}
    )


def test_the_multiplier_by_hand():
    """lambda 2; loss .75: 2 + 4 (.75 - .5) = 3; loss .25: 3 - 1 = 2; loss 0, twice: 0, 0; loss 1: 2."""
    objective = pdu()
    seen = []
    for step, value in enumerate((0.75, 0.25, 0.0, 0.0, 1.0)):
        objective.begin_step(at(step / 2, step=step))
        objective.on_step({"pdu": 9.0, "retain_nll": value})
        seen.append(objective.report()["retain_weight"])
    assert seen == pytest.approx([3, 2, 0, 0, 2])


def test_the_multiplier_waits_for_the_warm_up_and_can_stay_constant():
    objective = pdu(dual_warmup_epochs=2)
    for epoch, expected in ((0.0, 2), (1.5, 2), (2.0, 4)):
        objective.begin_step(at(epoch))
        objective.on_step({"pdu": 0.0, "retain_nll": 1.0})
        assert objective.report()["retain_weight"] == expected
    still = pdu(primal_dual=False)
    still.on_step({"pdu": 0.0, "retain_nll": 1.0})
    assert still.report()["retain_weight"] == 2


def test_the_multiplier_is_updated_by_epochs_with_their_mean():
    """Losses 1 and .5 in the first epoch: mean .75: 2 + 4 * .25 = 3, from the second epoch on."""
    objective = pdu(dual_update_upon="epoch")
    for epoch, value, expected in ((0.0, 1.0, 2), (0.5, 0.5, 2), (1.0, 0.0, 3), (1.5, 0.0, 3), (2.0, 0.0, 1)):
        objective.begin_step(at(epoch))
        assert objective.report()["retain_weight"] == pytest.approx(expected)
        objective.on_step({"pdu": 0.0, "retain_nll": value})


def test_the_multipliers_state_is_saved():
    first, second = pdu(dual_update_upon="epoch"), pdu(dual_update_upon="epoch")
    for epoch in (0.0, 0.5):
        first.begin_step(at(epoch))
        first.on_step({"pdu": 0.0, "retain_nll": 1.0})
    second.load_state_dict(first.state_dict())
    for objective in (first, second):
        objective.begin_step(at(1.0))
        assert objective.report()["retain_weight"] == 4
    with pytest.raises(UserError, match="no dual multiplier"):
        second.load_state_dict({})


def test_pdu_is_refused_without_a_retain_term_or_a_bound_or_with_a_schedule():
    with pytest.raises(UserError, match="bounds a retain term"):
        pdu(retain="none")
    with pytest.raises(UserError, match="takes no schedule"):
        pdu(schedule="ramp")
    with pytest.raises(UserError, match="retain_loss_eps"):
        build_objective(PDU, {})


@pytest.mark.parametrize("cut", [(2, 4)])
def test_the_multiplier_sees_the_whole_step_for_any_micro_batch_size(run: Any, cut: tuple[int, int]):
    """One update per optimizer step, by the mean over the whole step: the same for 8x1 and 2x4."""
    args = {"retain_loss_eps": 0.5, "dual_warmup_epochs": 0, "dual_step_size": 0.25}
    batch, accumulation = cut
    history = run(
        PDU, args, steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    ).trainer.state.log_history
    found, weight = [record for record in history if "pdu" in record], 1.0
    for record in found:
        weight += 0.25 * (record["retain_nll"] - 0.5)
        assert record["retain_weight"] == pytest.approx(weight, rel=1e-5)
    whole = run(PDU, args, steps=2, folder="whole").trainer.state.log_history
    assert [record["retain_weight"] for record in found] == pytest.approx(
        [record["retain_weight"] for record in whole if "pdu" in record], rel=1e-4
    )


def test_the_field_updates_the_multiplier_after_every_micro_batch(run: Any):
    """Two micro-batches per step make two updates, each by the mean over its own tokens.

    The sum of the two is twice the mean of means.
    """
    args = {"retain_loss_eps": 0.5, "dual_warmup_epochs": 0, "dual_step_size": 0.25}
    switches, extra = {"pdu": {"dual_unit": "micro_batch", "mask": "own"}}, {"normalise": "micro_batch"}
    ran = run(
        PDU,
        args,
        steps=1,
        switches=switches,
        extra=extra,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    record = ran.trainer.state.log_history[0]
    assert record["retain_weight"] == pytest.approx(1.0 + 2 * 0.25 * (record["retain_nll"] - 0.5), rel=1e-5)


def test_at_zero_the_retain_term_is_computed_and_can_raise_the_weight_again(run: Any):
    ran = run(PDU, {"retain_loss_eps": 50.0, "dual_warmup_epochs": 0}, steps=2)
    first, second = [record for record in ran.trainer.state.log_history if "pdu" in record]
    assert first["retain_weight"] == second["retain_weight"] == 0
    assert ran.trainer.objective.terms[1].watched
    ran.trainer.objective.on_step({"pdu": 0.0, "retain_nll": 51.0})
    assert ran.trainer.objective.report()["retain_weight"] == 1


def test_a_resumed_run_continues_with_the_multiplier(run: Any):
    args = {"retain_loss_eps": 0.5, "dual_warmup_epochs": 0, "dual_step_size": 0.25}
    whole = run(PDU, args, steps=4, folder="whole").trainer.objective.report()
    run(PDU, args, steps=2, folder="parts", save_strategy="steps", save_steps=2)
    resumed = run(PDU, args, steps=4, folder="parts", save_strategy="steps", save_steps=2, resume=True)
    assert resumed.trainer.objective.report() == pytest.approx(whole, rel=1e-6)
