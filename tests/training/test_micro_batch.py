"""The positions of the labels of a micro-batch, and which of its rows count, are known on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.data.collate import collate
from expunge.lm.labels import label_index, laid_out, padded
from expunge.methods.objective import build_objective
from expunge.models.outputs import label_outputs, side_outputs
from expunge.models.reference import FrozenCopy
from expunge.training.driver import Driver, count_step, place_of
from expunge.training.order import CollateMicroBatch, micro_batch
from expunge.training.places import special

CASES = {
    "sequence": ("expunge.methods.npo:npo", {}),
    "token": ("expunge.methods.grad_diff:grad_diff", {}),
    "token on logits": ("expunge.methods.ceu:ceu", {"retain": "kl"}),
    "all tokens": ("expunge.methods.me:me", {}),
    "model": ("expunge.methods.l1_sparse:l1_sparse", {"alpha_l1": 1e-3}),
    "hidden states": ("expunge.methods.rmu:rmu", {"module_regex": r"model\.layers\.0"}),
}


def step(model: Any, reference: Any, name: str, rows: list[Any], counted: list[bool], collator: Any) -> Any:
    """The terms' means over a step of one micro-batch, and the gradient."""
    handler, args = CASES[name]
    objective = build_objective(handler, args)
    objective.prepare(model, 0)
    batch = CollateMicroBatch(collator, objective.elsewhere)(list(zip(rows, counted, strict=True)))
    places = special(place_of(term) for term in objective.terms if term.kind == "token")
    counts = count_step([batch], sorted(objective.sides), lambda total: total, places)
    model.zero_grad()
    driver = Driver(objective, reference)
    loss, values = driver.backward(model, batch, counts, lambda loss: loss.backward())
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss, values, torch.cat([part.flatten() for part in gradient])


@pytest.mark.parametrize("name", CASES)
def test_a_row_that_does_not_count_changes_nothing(
    tiny_model: Any, pairs: Any, make_collate: Any, name: str
) -> None:
    model, data = tiny_model(seed=2).double(), pairs()
    reference = FrozenCopy(tiny_model(seed=3).double(), hidden=r"model\.layers\.0")
    rows = [data[row] for row in range(5)]
    longest = max(range(5), key=lambda row: len(rows[row]["forget"]))
    counted = [row != longest for row in range(5)]
    found = step(model, reference, name, rows, counted, make_collate)
    without = [row for row, flag in zip(rows, counted, strict=True) if flag]
    expected = step(model, reference, name, without, [True] * 4, make_collate)
    whole = step(model, reference, name, rows, [True] * 5, make_collate)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(whole[2], expected[2], rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_filler_has_no_gradient_and_counts_for_nothing(
    tiny_model: Any, pairs: Any, make_collate: Any, name: str
) -> None:
    model, data = tiny_model(seed=2), pairs()
    reference = FrozenCopy(tiny_model(seed=3), hidden=r"model\.layers\.0")
    loss, values, gradient = step(model, reference, name, [data[0], data[1]], [False, False], make_collate)
    assert loss == 0
    assert not values.any()
    assert not gradient.any()


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_at_the_labels_alone_gives_what_the_padded_view_gives(
    tiny_model: Any, pairs: Any, padding: Any, tied: bool
) -> None:
    """Rows of different lengths, one of them without a label; logits, log-probs and gradients."""
    model, data = tiny_model(seed=2, tie_word_embeddings=tied).double(), pairs()
    side = collate([data[row]["forget"] for row in range(6)], 4, padding)
    side["label_mask"][2] = False
    index = label_index(side["input_ids"], side["label_mask"])
    old, new = label_outputs(model, side), side_outputs(model, side)
    assert new.logits_MV is not None
    assert len(new.logits_MV) == int(index.mask_BN.sum()) < index.mask_BN.numel()
    torch.testing.assert_close(new.logits_BNV[index.mask_BN], old.logits_BNV[index.mask_BN])
    assert (new.logp_BN[~index.mask_BN] == 0).all()

    def gradient(value: Tensor) -> Tensor:
        model.zero_grad()
        value.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    logp_BN = old.logits_BNV.log_softmax(-1).gather(-1, old.label_BN.unsqueeze(-1)).squeeze(-1)
    expected = gradient((logp_BN.square() * old.mask_BN).sum())
    torch.testing.assert_close(gradient(new.logp_BN.square().sum()), expected, rtol=1e-9, atol=1e-9)


def test_a_batch_without_any_label_trains_nothing(tiny_model: Any, pairs: Any, make_collate: Any) -> None:
    model, sides = tiny_model(seed=2), make_collate([pairs()[row] for row in range(2)])
    for side in sides.values():
        side["label_mask"][:] = False
    out = side_outputs(model, micro_batch(sides)["sides"]["forget"])
    assert out.logp_BN.tolist() == [[0.0], [0.0]]
    out.logp_BN.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_labels_are_found_row_after_row() -> None:
    """Rows with labels at 1 and 3, none, and at 2; nothing predicts a label at 0."""
    side: Any = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [9, 10, 11, 12]]),
        "attention_mask": torch.ones(3, 4, dtype=torch.long),
        "label_mask": torch.tensor([[True, True, False, True], [False] * 4, [False, False, True, False]]),
        "row": torch.tensor([4, 5, 6]),
    }
    laid = laid_out(side)
    found = {name: value.tolist() for name, value in laid["labels"].items()}  # type: ignore[attr-defined]
    assert found == {
        "row_M": [0, 0, 2],
        "position_M": [0, 2, 1],
        "slot_M": [0, 1, 4],
        "label_M": [6, 8, 11],
        "mask_BN": [[True, True], [False, False], [True, False]],
    }
    assert padded(torch.tensor([1.0, 2.0, 3.0]), laid["labels"]).tolist() == [[1, 2], [0, 0], [3, 0]]
    host = laid["host"]
    assert (host.row_R.tolist(), host.count_R.tolist()) == ([4, 5, 6], [2, 0, 1])
    assert [host.count(skip) for skip in (0, 1, 2)] == [3, 1, 0]
    left_out = laid_out(side, torch.tensor([True, True, False]))
    assert (left_out["host"].row_R.tolist(), left_out["host"].count()) == ([4, 5], 2)
    assert not left_out["label_mask"][2].any()


@pytest.mark.parametrize("cut", [(5,), (2, 3)])
def test_rewards_are_means_over_the_sequences_of_the_step(
    tiny_model: Any, pairs: Any, make_collate: Any, cut: tuple[int, ...]
) -> None:
    """NPO: beta (log p - log p_ref) of the forget answers; DPO: both answers, their difference, its sign."""
    model, before, data = tiny_model(seed=2), tiny_model(seed=3), pairs()
    rows = [{**data[row], "alternate": data[(row + 3) % 13]["forget"]} for row in range(5)]

    def seq_logp(one: Any, side: str) -> Tensor:
        with torch.no_grad():
            return side_outputs(one, make_collate(rows)[side]).logp_BN.sum(-1)

    forget_B, alternate_B = (
        0.5 * (seq_logp(model, side) - seq_logp(before, side)) for side in ("forget", "alternate")
    )
    expected = {
        "npo_reward": forget_B,
        "dpo_reward_chosen": alternate_B,
        "dpo_reward_rejected": forget_B,
        "dpo_margin": alternate_B - forget_B,
        "dpo_accuracy": (alternate_B > forget_B).float(),
    }
    for handler in ("expunge.methods.npo:npo", "expunge.methods.dpo:dpo"):
        objective = build_objective(handler, {"beta": 0.5, "retain": "none"})
        driver, passes = Driver(objective, FrozenCopy(before)), []
        hook = model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        parts, start = [], 0
        for size in cut:
            parts.append(micro_batch(make_collate(rows[start : start + size])))
            start += size
        counts = count_step(parts, sorted(objective.sides), lambda total: total)
        total = sum(driver.backward(model, part, counts, lambda loss: loss.backward())[1] for part in parts)
        hook.remove()
        found = dict(zip(driver.names, torch.as_tensor(total).tolist(), strict=True))
        assert len(passes) == len(cut) * len(objective.sides)
        assert {name for name in found if name in expected} == set(found) - {objective.terms[0].name}
        for name in set(found) & set(expected):
            assert found[name] == pytest.approx(expected[name].mean().item(), rel=1e-4, abs=1e-6)
