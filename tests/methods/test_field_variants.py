"""The compat switches against the field's arithmetic: padded batches, labels of -100.

The expected values are computed by formulas typed from the field's public code.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_task import PAD, task
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, softmax

from expunge.data.collate import PairCollator
from expunge.methods.objective import build_objective
from expunge.models.reference import FrozenCopy
from expunge.training.driver import Driver, count_step, place_of, sides_at
from expunge.training.order import micro_batch
from expunge.training.places import PLACES, at_places, count_labels, special


@pytest.fixture
def batch() -> Any:
    data = task()
    everywhere = {places: ("forget", "retain") for places in PLACES if places != "labels"}
    return micro_batch(PairCollator(PAD)([data[row] for row in range(5)]), elsewhere=everywhere)


def field_inputs(side: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The output of the field's collator: tokens, attention mask, labels (-100 = does not count)."""
    inputs = {"input_ids": side["input_ids"], "attention_mask": side["attention_mask"]}
    return inputs, side["input_ids"].masked_fill(~side["label_mask"], -100)


def ours(
    handler: str, args: dict, switches: dict, model: Any, reference: Any, batch: Any, term: str
) -> tuple[float, Tensor]:
    """The term's value over one micro-batch, and the gradient of gamma = alpha = 1."""
    objective = build_objective(handler, args, lambda name: switches.get(name, {}))
    driver = Driver(objective, reference, normalise="micro_batch")
    counts = count_step(
        [batch], objective.sides, lambda total: total, special(place_of(term) for term in objective.terms)
    )
    model.zero_grad()
    _, values = driver.backward(model, batch, counts, lambda loss: loss.backward())
    found = dict(zip([term.name for term in objective.terms], values.tolist(), strict=True))[term]
    return found, torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_of(value: Tensor, model: Any) -> Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def models(tiny_model: Any) -> tuple[Any, Any]:
    return tiny_model(seed=1).train(), tiny_model(seed=2)


def test_kl_over_all_positions(models: Any, batch: Any):
    """The sum of KL(ref || theta) over all positions / (B * T); last position, prompt, padding included."""
    model, before = models
    inputs, _ = field_inputs(batch["sides"]["retain"])
    ref, now = (log_softmax(item(**inputs).logits, -1) for item in (before, model))
    theirs = (ref.detach().exp() * (ref.detach() - now)).sum() / (now.shape[0] * now.shape[1])
    args = {"retain": "kl", "gamma": 0.0}
    reference = FrozenCopy(before)
    value, gradient = ours(
        "expunge.methods.grad_diff:grad_diff",
        args,
        {"kl": {"mask": "all"}},
        model,
        reference,
        batch,
        "retain_kl",
    )
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(theirs, model), rtol=1e-4, atol=1e-6)
    plain, _ = ours("expunge.methods.grad_diff:grad_diff", args, {}, model, reference, batch, "retain_kl")
    assert plain != pytest.approx(value, rel=1e-2)


def test_souls_kl(models: Any, batch: Any):
    """-sum_v p_theta log(p_ref + 1e-12), the mean over B * T positions; on the forget side times -gamma."""
    model, before = models
    inputs = {side: field_inputs(batch["sides"][side])[0] for side in ("forget", "retain")}

    def theirs(side: str) -> Tensor:
        now, ref = (softmax(item(**inputs[side]).logits, -1) for item in (model, before))
        return -(now * (ref.detach() + 1e-12).log()).sum(-1).mean()

    soul = {name: {"form": "reverse_cross_entropy", "mask": "all"} for name in ("kl", "forget_kl")}
    reference = FrozenCopy(before)
    handler = "expunge.methods.forget_kl:forget_kl"
    value, gradient = ours(handler, {"gamma": 0.5}, soul, model, reference, batch, "retain_kl")
    assert value == pytest.approx(theirs("retain").item(), rel=1e-5)
    forgotten, _ = ours(handler, {"gamma": 0.5}, soul, model, reference, batch, "forget_kl")
    assert forgotten == pytest.approx(-theirs("forget").item(), rel=1e-5)
    torch.testing.assert_close(
        gradient, gradient_of(-0.5 * theirs("forget") + theirs("retain"), model), rtol=1e-4, atol=1e-6
    )
    plain, _ = ours(handler, {"gamma": 0.5}, {}, model, reference, batch, "retain_kl")
    assert plain != pytest.approx(value, rel=1e-2)


def test_undial_over_all_positions(models: Any, batch: Any):
    """Mean over B * (T - 1); a label of -100 lowers the logit of the vocabulary entry V - 100."""
    model, before = models
    inputs, labels_BT = field_inputs(batch["sides"]["forget"])
    shifted = labels_BT[:, 1:]
    teacher = before(**inputs).logits[:, :-1].detach()
    lowered = torch.zeros_like(teacher)
    rows, places = torch.meshgrid(
        torch.arange(teacher.shape[0]), torch.arange(teacher.shape[1]), indexing="ij"
    )
    lowered[rows, places, shifted] = 10.0
    student = model(**inputs).logits[:, :-1]
    theirs = cross_entropy(student.flatten(0, 1), softmax(teacher - lowered, -1).flatten(0, 1))
    switches = {"undial": {"mask": "predictors"}}
    value, gradient = ours(
        "expunge.methods.undial:undial", {}, switches, model, FrozenCopy(before), batch, "undial"
    )
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(theirs, model), rtol=1e-4, atol=1e-6)


def test_pdu_at_the_labels_own_positions(models: Any, batch: Any):
    model, _ = models
    inputs, labels_BT = field_inputs(batch["sides"]["forget"])
    logits = model(**inputs).logits
    margin_BT, mask_BT = (logits.max(-1).values - logits.mean(-1)) ** 2, labels_BT != -100
    theirs = (margin_BT * mask_BT).sum() / mask_BT.sum()
    args = {"retain_loss_eps": 0.3, "dual_warmup_epochs": 9}
    value, _ = ours("expunge.methods.pdu:pdu", args, {"pdu": {"mask": "own"}}, model, None, batch, "pdu")
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    assert ours("expunge.methods.pdu:pdu", args, {}, model, None, batch, "pdu")[0] != pytest.approx(
        value, rel=1e-3
    )


def test_rmu_with_the_outer_quotient(models: Any, batch: Any):
    """Both terms: ([B] sums / [B, 1] counts).mean(), unshifted states, masks at the labels' own positions."""
    model, before = models
    switches = {"rmu": {"ratio": "batch"}, "embed_diff": {"ratio": "batch"}}
    pattern = r"model\.layers\.0"
    objective = build_objective(
        "expunge.methods.rmu:rmu", {"module_regex": pattern}, lambda name: switches[name]
    )
    objective.prepare(model, 0)
    driver = Driver(objective, FrozenCopy(before, hidden=pattern))
    _, values = driver.backward(
        model,
        batch,
        count_step([batch], ["forget", "retain"], lambda total: total),
        lambda loss: loss.backward(),
    )
    control_D = objective.given(torch.device("cpu"))["control_D"]
    for found, side in zip(values.tolist(), ("forget", "retain"), strict=True):
        inputs, labels_BT = field_inputs(batch["sides"][side])
        state = model(**inputs, output_hidden_states=True).hidden_states[1]
        target = (
            2.0 * control_D
            if side == "forget"
            else before(**inputs, output_hidden_states=True).hidden_states[1]
        )
        mask_BT = labels_BT != -100
        sums_B = (((state - target) ** 2) * mask_BT.unsqueeze(-1)).mean(2).sum(1)
        assert found == pytest.approx((sums_B / mask_BT.sum(-1, keepdim=True)).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("args", "padding"), [({}, False), ({"mask": "predictors"}, True)])
def test_me_reads_prompts_as_well(models: Any, batch: Any, args: dict, padding: bool):
    """Mean of ln V - H over all positions with a successor.

    The published form leaves out padding; the authors' code includes it.
    """
    model, _ = models
    inputs, _ = field_inputs(batch["sides"]["forget"])
    logp = log_softmax(model(**inputs).logits[:, :-1], -1)
    divergence_BS = (logp.exp() * (logp + torch.tensor(float(logp.shape[-1])).log())).sum(-1)
    counted_BS = torch.ones_like(divergence_BS) if padding else inputs["attention_mask"][:, 1:].float()
    theirs = (divergence_BS * counted_BS).sum() / counted_BS.sum()
    given = {"gamma": 1.0, "retain": "none", **args}
    value, gradient = ours("expunge.methods.me:me", given, {}, model, None, batch, "me")
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(theirs, model), rtol=1e-4, atol=1e-6)
    answers, _ = ours("expunge.methods.me:me", {**given, "mask": "labels"}, {}, model, None, batch, "me")
    assert answers != pytest.approx(value, rel=1e-4)


def test_all_tokens_of_rows_padded_on_the_left():
    """Row 1 has two padding positions, then two tokens: one has a predecessor. Padding predicts no token."""
    side = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [0, 0, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
        "label_mask": torch.tensor([[False, False, False, True], [False, False, False, True]]),
    }
    moved = at_places({"forget": side}, "tokens")["forget"]
    assert moved["label_mask"].tolist() == [[False, True, True, True], [False, False, False, True]]
    assert "position_ids" not in moved


def test_places_and_their_counts(batch: Any):
    side = batch["sides"]["forget"]
    rows, width = side["input_ids"].shape
    labels = int(side["label_mask"].sum())
    counts = {places: count_labels(sides_at(batch, places)["forget"]) for places in PLACES}
    assert [counts[places] for places in ("labels", "predictors", "all", "own")] == [
        labels,
        rows * (width - 1),
        rows * width,
        labels,
    ]
    assert counts["tokens"] == int(side["attention_mask"].sum()) - rows
    assert count_labels(side, skip=1) == sum(max(0, int(row.sum()) - 1) for row in side["label_mask"])
    moved = at_places({"forget": side}, "own")["forget"]
    assert moved["label_mask"][:, 1:].tolist() == side["label_mask"].tolist()
    assert special([("forget", "labels", 0), ("forget", "labels", 1), ("", "labels", 0)]) == (
        ("forget", "labels", 1),
    )
