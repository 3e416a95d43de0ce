"""The whole of ELM: its three terms together, what they read, and what is left if one has no weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_task import task
from torch import Tensor

from expunge.core.errors import UserError
from expunge.methods.elm import EXPERT, NOVICE, ContextObjective, elm_fluency
from expunge.methods.objective import build_objective
from expunge.models.reference import FrozenCopy, plan_reference

ELM = "expunge.methods.elm:elm"
GIVEN: dict[str, Any] = {"concept": "novels", "eta": 1.5, "top_k": None}


def names(objective: Any) -> list[str]:
    return [need.name for need in objective.needs]


def test_fluency_by_hand():
    """-log of (1/2, 1/8): ln 2 = .693147, ln 8 = 2.079442. Their mean is 1.386294 = ln 4."""
    value_BN = elm_fluency(torch.tensor([[0.5, 0.125]]).log())
    torch.testing.assert_close(value_BN, torch.tensor([[0.693147, 2.079442]]))


def test_the_method_has_three_terms_and_the_reference_does_not_read_the_alternates():
    objective = build_objective(ELM, GIVEN)
    assert [(term.name, term.weight, term.is_retain) for term in objective.terms] == [
        ("elm", 1.0, False),
        ("elm_fluency", 1.0, False),
        ("retain_kl", 1.0, True),
    ]
    assert [term.kind for term in objective.terms] == ["token"] * 3
    assert set(objective.sides) == {"forget", "alternate", "retain"}
    assert {need.side for need in objective.reference_needs} == {"forget", "expert", "novice", "retain"}
    assert [
        term.weight for term in build_objective(ELM, {**GIVEN, "gamma": 2, "fluency": 0.5, "alpha": 3}).terms
    ] == [2.0, 0.5, 3.0]


def test_without_a_weight_the_term_is_not_computed_and_no_alternates_are_read():
    objective = build_objective(ELM, {**GIVEN, "fluency": 0})
    assert [term.name for term in objective.terms] == ["elm", "retain_kl"]
    assert objective.sides == ("forget", "retain")


def test_the_fluency_term_alone_reads_no_beginnings_and_no_reference(tiny_model: Any):
    objective = build_objective(ELM, {**GIVEN, "gamma": 0, "alpha": 0})
    assert names(objective) == ["alternate_logp_BN"]
    assert plan_reference(objective.needs) == "none"
    assert isinstance(objective, ContextObjective)
    objective.prepare(tiny_model(seed=1), 0)
    assert objective.derived({}) == {}
    with pytest.raises(UserError, match="needs a tokenizer"):
        build_objective(ELM, GIVEN).prepare(tiny_model(seed=1), 0)


def test_data_without_alternates_are_refused(run: Any):
    def without(sides: tuple[str, ...]) -> Any:
        return task(tuple(side for side in sides if side != "alternate"))

    with pytest.raises(UserError, match="no side 'alternate'"):
        run(ELM, GIVEN, steps=1, data=without)


def whole(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities [T, V] of the token after each token of one unpadded text."""
    with torch.no_grad():
        logp: Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logp


def retyped(model: Any, rows: Any, tokenizer: Any) -> dict[str, float]:
    """The three terms at the model before unlearning, text by text; p_theta = p_ref, so the third is 0."""
    before = {
        name: tokenizer(text.format(concept="novels"), add_special_tokens=False)["input_ids"]
        for name, text in (("expert", EXPERT), ("novice", NOVICE))
    }
    erase, fluency = [], []
    for number in range(len(rows)):
        item = rows[number]
        ids, labels = (
            list(item["forget"].input_ids),
            [n for n, counted in enumerate(item["forget"].label_mask) if counted],
        )
        logp = whole(model, ids)
        shifted = {name: whole(model, [*prefix, *ids])[len(prefix) :] for name, prefix in before.items()}
        for place in labels:
            weight = (
                logp[place - 1].exp()
                * (shifted["novice"][place - 1] - shifted["expert"][place - 1]).exp() ** 1.5
            )
            erase.append(-float((weight / weight.sum() * logp[place - 1]).sum()))
        other = list(item["alternate"].input_ids)
        logp = whole(model, other)
        fluency += [
            -float(logp[n - 1, other[n]]) for n, counted in enumerate(item["alternate"].label_mask) if counted
        ]
    return {"elm": sum(erase) / len(erase), "elm_fluency": sum(fluency) / len(fluency), "retain_kl": 0.0}


@pytest.mark.parametrize(("batch", "accumulated"), [(8, 1), (2, 4), (3, 3)])
def test_the_loss_is_the_weighted_sum_of_the_three_retyped_terms(
    run: Any,
    tiny_model: Any,
    tiny_tokenizer: Any,
    batch: int,
    accumulated: int,
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[str] = []
    own = FrozenCopy.outputs

    def outputs(self: FrozenCopy, side_name: str, side: Any) -> Any:
        asked.append(side_name)
        return own(self, side_name, side)

    monkeypatch.setattr(FrozenCopy, "outputs", outputs)
    expected = retyped(tiny_model(seed=1), task(), tiny_tokenizer)
    args = {**GIVEN, "gamma": 2.0, "fluency": 0.5, "alpha": 3.0}
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    record = run(ELM, args, steps=1, **sizes).trainer.state.log_history[0]
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert record["loss"] == pytest.approx(2 * expected["elm"] + 0.5 * expected["elm_fluency"], rel=1e-4)
    assert set(asked) == {"forget", "expert", "novice", "retain"}


def test_further_terms_take_the_methods_hyper_parameters_and_need_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The mechanism, with a user's own method."""
    from expunge.config.method import extra_terms, hyper_parameters
    from expunge.core.handlers import REQUIRED, read_signature

    (tmp_path / "method_with_terms.py").write_text(
        "from expunge.methods.base import loss\n"
        "@loss(kind='token', extra=(('second', 'method_with_terms:second'),))\n"
        "def first(forget_logp_BN, *, slope=1.0, own=0):\n    return slope * forget_logp_BN\n"
        "@loss(kind='sequence', gamma=None)\n"
        "def second(alternate_seq_logp_B, *, slope=5.0, power=2):\n    return slope * alternate_seq_logp_B\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    handler = "method_with_terms:first"
    signature = read_signature(handler)
    assert list(extra_terms(signature)) == ["second"]
    assert hyper_parameters(signature)["second"] is REQUIRED
    with pytest.raises(UserError, match=r"method_args\.second is not given"):
        build_objective(handler, {})
    with pytest.raises(UserError, match=r"method_args\.second=big: must be a number"):
        build_objective(handler, {"second": "big"})
    first, second = build_objective(handler, {"second": 0.25, "slope": 3.0, "schedule": "fade"}).terms
    assert (first.kwargs, second.kwargs) == ({"slope": 3.0, "own": 0}, {"slope": 3.0, "power": 2})
    assert (second.name, second.weight, second.kind, second.side) == ("second", 0.25, "sequence", "alternate")
    assert [term.name for term in build_objective(handler, {"second": 0}).terms] == ["first"]


def test_a_weight_that_is_also_a_hyper_parameter_is_refused_when_the_loss_is_defined():
    from expunge.methods.base import loss

    def both(forget_logp_BN, *, second=1.0):
        return forget_logp_BN

    with pytest.raises(ValueError, match="'second' of both"):
        loss(kind="token", extra=(("second", "nowhere:nothing"),))(both)
