"""The sums and means of a step: however it is split, the gradient is that of one mean over the whole step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from expunge.core.errors import UserError
from expunge.core.needs import QUANTITIES, parse_need
from expunge.training.driver import Driver, StepCounts, count_step, independent_groups, summed
from expunge.training.order import epoch_order, micro_batch
from expunge.training.quantities import MAKERS, build_quantities, check_servable

GRAD_DIFF = "expunge.methods.grad_diff:grad_diff"


class Gradients(TrainerCallback):
    """Keeps the whole gradient of every step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append(
            torch.cat([p.grad.detach().flatten().clone() for p in model.parameters() if p.grad is not None])
        )


def gradients(trainer: Any, batch: int, accumulation: int, **more: Any) -> list[torch.Tensor]:
    kept = Gradients()
    extra = {"callbacks": [kept], **more.pop("extra", {})}
    args = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
    }
    trainer(extra=extra, **args, **more).run()
    return kept.steps


@pytest.fixture
def plain(tiny_model: Any) -> Any:
    """A model without dropout, so that passes can be compared."""
    return lambda: tiny_model(seed=2)


@pytest.mark.parametrize("handler", ["expunge.methods.npo:npo", GRAD_DIFF])
def test_eight_by_one_is_four_by_two_is_two_by_four(
    trainer: Any, objective: Any, plain: Any, handler: str
) -> None:
    """13 rows: a step of 8 and a short one of 5; the last micro-batch has one row."""
    whole, halves, quarters = (
        gradients(trainer, b, a, task=objective(handler), model=plain()) for b, a in ((8, 1), (4, 2), (2, 4))
    )
    assert len(whole) == len(halves) == len(quarters) == 2
    for step in range(2):
        torch.testing.assert_close(halves[step], whole[step], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quarters[step], whole[step], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_mean_written_out(
    trainer: Any, objective: Any, plain: Any, pairs: Any
) -> None:
    """GradDiff by hand, row by row: 0.7 * mean log p of forget labels + 1.3 * mean nll of retain labels."""
    first = gradients(trainer, 4, 2, task=objective(GRAD_DIFF), model=plain())[0]
    model, data, order = plain().train(), pairs(), epoch_order(13, 3, 0)[:8]
    total, count = {"forget": torch.zeros(()), "retain": torch.zeros(())}, {"forget": 0, "retain": 0}
    for row in order:
        for side, encoded in data[row].items():
            logp = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
            for position, counted in enumerate(encoded.label_mask):
                if counted:
                    total[side] = total[side] + logp[position - 1, encoded.input_ids[position]]
                    count[side] += 1
    (0.7 * total["forget"] / count["forget"] - 1.3 * total["retain"] / count["retain"]).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)


def test_micro_batch_means_depend_on_the_cut_and_are_the_fields(
    trainer: Any, objective: Any, plain: Any
) -> None:
    """Mean of micro-batch means: 4x2 is the average of two steps of 4x1 from the same weights, not 8x1."""
    extra = {"normalise": "micro_batch"}
    task = objective(GRAD_DIFF)
    whole = gradients(trainer, 8, 1, task=task, model=plain(), extra=extra)[0]
    halves = gradients(trainer, 4, 2, task=task, model=plain(), extra=extra)[0]
    apart = gradients(
        trainer, 4, 1, task=task, model=plain(), extra=extra, learning_rate=1e-30, weight_decay=0.0
    )
    torch.testing.assert_close(halves, (apart[0] + apart[1]) / 2, rtol=1e-4, atol=1e-5)
    assert (halves - whole).norm() > 0.01 * whole.norm()


def test_terms_one_after_the_other_give_the_same_gradient_for_less_memory(
    tiny_model: Any, objective: Any, pairs: Any, make_collate: Any
) -> None:
    data, model, alive = pairs(), tiny_model(seed=2), {}
    batch = micro_batch(make_collate([data[row] for row in range(13)]))
    counts = count_step([batch], ["forget", "retain"], lambda total: total)
    found = {}
    for sequential in (False, True):
        model.zero_grad()
        peak = now = 0
        sizes: dict[int, int] = {}

        class Held:
            def __init__(self, tensor: torch.Tensor) -> None:
                nonlocal peak, now
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                now += self.size
                peak = max(peak, now)

            def __del__(self) -> None:
                nonlocal now
                now -= self.size

        driver = Driver(objective(GRAD_DIFF), sequential_terms=sequential)
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            driver.backward(model, batch, counts, lambda loss: loss.backward())
        alive[sequential], sizes = peak, sizes
        found[sequential] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-6)
    assert alive[True] < 0.7 * alive[False]


def test_terms_that_share_a_side_stay_together(objective: Any) -> None:
    alone = objective(GRAD_DIFF).terms
    assert [[term.side for term in group] for group in independent_groups(alone)] == [["forget"], ["retain"]]
    shared = (*alone, *objective("expunge.methods.npo:npo", retain="none").terms)
    assert [[term.name for term in group] for group in independent_groups(shared)] == [
        ["retain_nll"],
        ["grad_diff", "npo"],
    ]


def test_a_filler_counts_for_nothing(tiny_model: Any, objective: Any, pairs: Any, make_collate: Any) -> None:
    data, model = pairs(), tiny_model(seed=2)
    filler = micro_batch(make_collate([data[0]]), [False])
    assert count_step([filler], ["forget"], lambda total: total) == StepCounts(
        {"forget": 0}, {"forget": 0}, 0
    )
    loss, values = Driver(objective(GRAD_DIFF)).backward(
        model,
        filler,
        StepCounts({"forget": 9, "retain": 9}, {"forget": 1, "retain": 1}, 1),
        lambda loss: loss.backward(),
    )
    assert loss == 0
    assert values.tolist() == [0, 0]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_every_quantity_of_a_side_has_its_function() -> None:
    assert set(MAKERS) == {name for name, source in QUANTITIES.items() if source != "given"}


def test_one_forward_a_side_however_many_needs(tiny_model: Any, pairs: Any, make_collate: Any) -> None:
    model, data, calls = tiny_model(seed=2), pairs(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    names = [
        "forget_logp_BN",
        "forget_seq_logp_B",
        "forget_len_B",
        "forget_mask_BN",
        "forget_logits_BNV",
        "forget_label_BN",
        "retain_mask_BT",
    ]
    batch = make_collate([data[row] for row in range(3)])
    found = build_quantities([parse_need(name) for name in names], model, batch)
    assert len(calls) == 1
    assert set(found) == {*names, "retain_mask_BN"}
    assert found["forget_len_B"].tolist() == [sum(data[row]["forget"].label_mask) for row in range(3)]
    by_hand = torch.stack(
        [row[: int(n)].sum() for row, n in zip(found["forget_logp_BN"], found["forget_len_B"], strict=True)]
    )
    torch.testing.assert_close(found["forget_seq_logp_B"], by_hand)


def test_what_cannot_be_built_is_refused_before_training(trainer: Any, objective: Any) -> None:
    with pytest.raises(UserError, match="no reference was given"):
        trainer(extra={"reference": None})
    with pytest.raises(UserError, match="no side 'alternate'"):
        trainer(task=objective("expunge.methods.dpo:dpo"))
    with pytest.raises(UserError, match="cannot be built"):
        check_servable([parse_need("forget_hidden_BTD")], ["forget"], None)
    with pytest.raises(UserError, match="no evaluation suite is configured"):
        trainer(eval_strategy="epoch")
    with pytest.raises(UserError, match=r"driver\.normalise"):
        trainer(extra={"normalise": "flat"})


def test_a_loss_of_the_wrong_shape_is_reported(objective: Any) -> None:
    term = objective(GRAD_DIFF).terms[0]
    term.loss = type(
        "Mean", (), {"spec": term.loss.spec, "__call__": lambda self, *_, **__: torch.zeros(())}
    )()
    quantities = {need.name: torch.zeros(2, 3) for need in term.needs} | {
        "forget_mask_BN": torch.ones(2, 3, dtype=torch.bool)
    }
    with pytest.raises(UserError, match=r"returned \[\] instead of \[2, 3\]"):
        summed(term, term(quantities), quantities)


def test_reference_and_model_compute_alike_under_autocast(trainer: Any, tiny_model: Any) -> None:
    """At the reference NPO is (2/beta) ln 2 = 13.8629 exactly, if both sides use the same bf16 arithmetic."""
    run = trainer(model=tiny_model(seed=1, num_hidden_layers=1), bf16=True, use_cpu=True, max_steps=1)
    run.run()
    assert run.state.log_history[0]["npo"] == pytest.approx(20 * math.log(2), rel=1e-6)


def test_gradient_checkpointing_changes_no_gradient(trainer: Any, plain: Any) -> None:
    kept = gradients(trainer, 4, 2, model=plain())
    recomputed = gradients(trainer, 4, 2, model=plain(), gradient_checkpointing=True)
    torch.testing.assert_close(recomputed, kept, rtol=1e-5, atol=1e-6)
