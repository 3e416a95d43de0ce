from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from expunge.core.errors import UserError
from expunge.methods.base import loss
from expunge.methods.objective import Objective, StepInfo, Term, build_objective

NPO, GA, GD = (
    "expunge.methods.npo:npo",
    "expunge.methods.grad_ascent:grad_ascent",
    "expunge.methods.grad_diff:grad_diff",
)


def names(objective: Objective) -> list[str]:
    return [term.name for term in objective.terms]


def test_defaults_come_from_the_decorator_and_the_signature():
    objective = build_objective("expunge.methods.simnpo:simnpo", {})
    own, retain = objective.terms
    assert (own.name, own.weight, own.kwargs, own.kind, own.side) == (
        "simnpo",
        0.125,
        {"beta": 4.5, "delta": 0.0},
        "sequence",
        "forget",
    )
    assert (retain.name, retain.weight, retain.kwargs, retain.kind, retain.side) == (
        "retain_nll",
        1.0,
        {},
        "token",
        "retain",
    )
    assert objective.sides == ("forget", "retain")
    assert objective.reference_needs == ()
    assert [need.name for need in objective.needs] == [
        "forget_seq_logp_B",
        "forget_len_B",
        "retain_logp_BN",
    ]


def test_the_users_values_take_precedence_over_switches_and_switches_over_defaults():
    switches = {"npo": {"beta": 0.5}}.get
    assert build_objective(NPO, {}, lambda name: switches(name, {})).terms[0].kwargs == {"beta": 0.5}
    assert build_objective(NPO, {"beta": 2, "gamma": 3, "alpha": 4}, lambda name: switches(name, {})).terms[
        0
    ].kwargs == {"beta": 2}
    assert [term.weight for term in build_objective(NPO, {"gamma": 3, "alpha": 4}).terms] == [3.0, 4.0]


@pytest.mark.parametrize(
    ("method_args", "expected"),
    [
        ({}, ["npo", "retain_nll"]),
        ({"retain": {"handler": "expunge.methods.retain:kl"}}, ["npo", "retain_kl"]),
        ({"retain": "kl"}, ["npo", "retain_kl"]),
        ({"retain_loss_type": "KL"}, ["npo", "retain_kl"]),
        ({"retain": {"handler": None}}, ["npo"]),
        ({"retain": None}, ["npo"]),
        ({"retain": "none", "alpha": 2}, ["npo"]),
        ({"alpha": 0}, ["npo"]),
        ({"gamma": 0.0}, ["retain_nll"]),
    ],
)
def test_the_retain_term_and_weights_of_0(method_args: dict[str, Any], expected: list[str]):
    assert names(build_objective(NPO, method_args)) == expected


def test_a_term_that_is_dropped_asks_for_no_reference():
    assert build_objective(NPO, {"gamma": 0}).reference_needs == ()
    assert [need.name for need in build_objective(NPO, {"retain": "kl"}).reference_needs] == [
        "ref_forget_seq_logp_B",
        "ref_retain_logits_BNV",
    ]


def test_methods_without_a_retain_term_and_on_other_sides():
    assert names(build_objective(GA, {})) == ["grad_ascent"]
    assert names(build_objective(GA, {"retain": "nll"})) == ["grad_ascent", "retain_nll"]
    assert build_objective("expunge.methods.finetune:finetune", {}).sides == ("retain",)
    assert build_objective("expunge.methods.dpo:dpo", {}).sides == ("forget", "alternate", "retain")


def test_faults_are_reported_together():
    with pytest.raises(UserError) as error:
        build_objective(NPO, {"betta": 3, "gamma": "big", "alpha": math.nan, "retain": "nl"})
    text = str(error.value)
    assert len(error.value.faults) == 4
    assert "trainer.method_args.betta=3: npo takes no 'betta'" in text
    assert "did you mean 'beta'" in text
    assert "trainer.method_args.gamma=big: must be a number of at least 0" in text
    assert "trainer.method_args.alpha=nan: must be a finite number" in text
    assert "did you mean 'nll'" in text


@pytest.mark.parametrize("beta", [0, -1, "0.1", True, math.inf])
def test_an_impossible_value_is_refused(beta: Any):
    with pytest.raises(
        UserError, match=rf"trainer.method_args.beta={beta}: must be a (finite )?number above 0"
    ):
        build_objective(NPO, {"beta": beta})


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("npo", "is not of the form module:function"),
        ("expunge.methods.nop:npo", "no module 'expunge.methods.nop'"),
        ("expunge.methods.npo:nop", "did you mean 'npo'"),
        ("expunge.methods.npo:logsigmoid", "is not a function"),
        ("expunge.methods.representation:squared_distance", "is not a loss"),
    ],
)
def test_handlers_that_name_no_loss(handler: str, message: str):
    with pytest.raises(UserError, match=message):
        build_objective(handler, {})


def test_nothing_to_optimise():
    with pytest.raises(UserError, match="nothing to optimise"):
        build_objective(GD, {"gamma": 0, "alpha": 0})


def test_a_weight_without_a_default_must_be_given():
    with pytest.raises(UserError, match=r"method_args\.gamma is not given, and forget_kl has no default"):
        build_objective("expunge.methods.forget_kl:forget_kl", {})
    assert names(build_objective("expunge.methods.forget_kl:forget_kl", {"gamma": 0.1})) == [
        "forget_kl",
        "retain_kl",
    ]


@loss(kind="token", retain="none")
def odd(
    forget_logp_BN,
    *,
    needed: int,
    mode: Literal["a", "b"] = "a",
    limit: float | None = None,
    flag: bool = False,
    word: str = "",
):
    return forget_logp_BN * needed


def test_values_are_checked_against_the_annotations():
    handler = f"{__name__}:odd"
    sys.modules.setdefault(__name__, sys.modules[odd.__module__])
    with pytest.raises(UserError, match=r"method_args\.needed is not given"):
        build_objective(handler, {})
    for wrong in ({"needed": 1.5}, {"mode": "c"}, {"limit": "x"}, {"flag": 1}, {"word": 3}):
        with pytest.raises(UserError, match=f"method_args.{next(iter(wrong))}=.*must be"):
            build_objective(handler, {"needed": 1, **wrong})
    good = {"needed": 2, "mode": "b", "limit": None, "flag": True, "word": "w"}
    assert build_objective(handler, good).terms[0].kwargs == good


def test_a_malformed_function_is_refused_when_it_is_defined():
    with pytest.raises(ValueError, match="is not a quantity"):
        loss(kind="token")(lambda forgotten_logp: forgotten_logp)
    with pytest.raises(ValueError, match="reads no quantity"):
        loss(kind="token")(lambda *, beta=1: beta)
    with pytest.raises(ValueError, match="keyword-only"):
        loss(kind="token")(lambda forget_logp_BN, beta=1: beta)


def test_a_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "method_of_a_user.py").write_text(
        "from expunge.methods.base import loss\n"
        "@loss(kind='sequence', gamma=2.0)\n"
        "def mine(forget_seq_logp_B, *, slope=3.0):\n    return slope * forget_seq_logp_B\n"
    )
    (tmp_path / "my_broken.py").write_text(
        "import no_such_package_at_all\n" + (tmp_path / "method_of_a_user.py").read_text()
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    term = build_objective("method_of_a_user:mine", {"slope": 4}).terms[0]
    assert (term.weight, term.kwargs) == (2.0, {"slope": 4})
    torch.testing.assert_close(term({"forget_seq_logp_B": torch.tensor([-1.0])}), torch.tensor([-4.0]))
    with pytest.raises(UserError, match="needs the module 'no_such_package_at_all'"):
        build_objective("my_broken:mine", {})


def test_a_plain_objective_has_no_state_and_refuses_the_state_of_another():
    objective = build_objective(GD, {})
    objective.begin_step(StepInfo(0, 10, 0.0, 1.0))
    objective.on_step({"grad_diff": -1.0, "retain_nll": 1.0})
    assert objective.state_dict() == {}
    objective.load_state_dict({})
    with pytest.raises(UserError, match="multiplier"):
        objective.load_state_dict({"multiplier": 1.0})


def test_a_schedule_is_an_objective_that_sets_weights():
    class Ramp(Objective):
        def begin_step(self, info: StepInfo) -> None:
            self.terms[1].weight = math.floor(info.epoch) / info.num_epochs

    objective = Ramp([Term(t.name, t.loss, t.weight, t.kwargs) for t in build_objective(GD, {}).terms])
    weights = []
    for epoch in (0.0, 0.9, 1.0, 3.5):
        objective.begin_step(StepInfo(0, 8, epoch, 4.0))
        weights.append(objective.terms[1].weight)
    assert weights == [0.0, 0.0, 0.25, 0.75]
