"""Objectives that read gradients or parameters: rectified gradients (GRU) and the l1 penalty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from expunge.core.errors import UserError
from expunge.methods.gru import GRU
from expunge.methods.l1_sparse import l1_sparse
from expunge.methods.objective import build_objective

ASCENT, NPO, L1 = (
    "expunge.methods.grad_ascent:grad_ascent",
    "expunge.methods.npo:npo",
    "expunge.methods.l1_sparse:l1_sparse",
)


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append(
            torch.cat([p.grad.detach().flatten().clone() for p in model.parameters() if p.grad is not None])
        )


def gradients(run: Any, handler: str, method_args: dict, **args: Any) -> list[torch.Tensor]:
    kept = Gradients()
    run(handler, method_args, extra={"callbacks": [kept]}, max_grad_norm=0.0, **args)
    return kept.steps


def parts(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(values[:1], dtype=torch.float64), torch.tensor(values[1:], dtype=torch.float64)]


def flat(tensors: list[torch.Tensor]) -> list[float]:
    return torch.cat([tensor.flatten() for tensor in tensors]).tolist()


def test_gru_by_hand():
    """g_u (3, -4), g_r (0, 2): <g_u, g_r> = -8, ||g_r||^2 = 4: g_u + 2 g_r = (3, 0).

    Without a conflict g_u does not change.
    """
    assert flat(GRU(ema=1.0)(parts(3, -4), parts(0, 2))) == pytest.approx([3, 0])
    assert flat(GRU(ema=1.0)(parts(3, 4), parts(0, 2))) == [3, 4]
    assert flat(GRU(ema=1.0)(parts(3, 4), parts(0, 0))) == [3, 4]


def test_gru_remembers_the_retain_gradient():
    """ema 1/4 on (4, 0) and (0, 4): the mean is (3, 1).

    g_u (-1, 1): <g_u, g> = -2, ||g||^2 = 10: g_u + .2 (3, 1) = (-.4, 1.2).
    """
    gru = GRU(ema=0.25)
    gru(parts(1, 1), parts(4, 0))
    assert flat(gru(parts(-1, 1), parts(0, 4))) == pytest.approx([-0.4, 1.2])
    other = GRU(ema=0.25)
    other.load_state_dict(gru.state_dict())
    assert flat(other(parts(-1, 1), parts(0, 4))) == pytest.approx(flat(gru(parts(-1, 1), parts(0, 4))))


def test_gru_is_the_nearest_gradient_that_does_not_go_against():
    """The two conditions of a projection on a half-space: g lies in it, and g - g_u is parallel to g_r."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        own, retain = ([torch.randn(4, generator=draw, dtype=torch.float64)] for _ in range(2))
        (found,) = GRU(ema=1.0)(own, retain)
        assert float(found @ retain[0]) >= -1e-9
        moved = found - own[0]
        assert float((moved @ retain[0]) ** 2) == pytest.approx(
            float(moved @ moved) * float(retain[0] @ retain[0]), abs=1e-9
        )


@pytest.mark.parametrize("handler", [ASCENT, pytest.param(NPO, marks=pytest.mark.slow)])
def test_the_whole_step_is_rectified_for_any_micro_batch_size(run: Any, handler: str):
    args = {"retain": "nll", "combine": {"handler": "gru", "ema": 1.0}}
    own = gradients(run, handler, {"retain": "none"}, steps=1, folder="own")[0]
    retain = gradients(run, "expunge.methods.finetune:finetune", {}, steps=1, folder="retain")[0]
    whole = gradients(run, handler, args, steps=1, folder="whole")[0]
    halves = gradients(
        run,
        handler,
        args,
        steps=1,
        folder="parts",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )[0]
    assert handler == NPO or own @ retain < 0
    expected = own - min(0.0, float(own @ retain)) / float(retain @ retain) * retain
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(halves, expected, rtol=1e-4, atol=1e-5)


def test_gru_resumes_from_a_checkpoint(run: Any):
    args = {"retain": "nll", "combine": "gru"}
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = run(ASCENT, args, steps=3, folder="whole").model
    run(ASCENT, args, steps=2, folder="parts", **saving)
    resumed = run(ASCENT, args, steps=3, folder="parts", resume=True, **saving).model
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_invalid_combinations_are_refused():
    with pytest.raises(UserError, match="there is none"):
        build_objective(ASCENT, {"combine": "gru"})
    with pytest.raises(UserError, match="did you mean 'gru'"):
        build_objective(NPO, {"combine": "gruu"})
    with pytest.raises(UserError, match=r"combine\.emma=1: GRU takes no 'emma'"):
        build_objective(NPO, {"combine": {"handler": "gru", "emma": 1}})
    with pytest.raises(UserError, match=r"combine\.ema=2\.0: must be a number above 0 and at most 1"):
        build_objective(NPO, {"combine": {"handler": "gru", "ema": 2.0}})


def test_l1_by_hand():
    """.5 (|1| + |-2| + |0| + |3|) = 3; the gradient is .5 times the signs."""
    first, second = (
        torch.tensor([1.0, -2.0], requires_grad=True),
        torch.tensor([[0.0], [3.0]], requires_grad=True),
    )
    value = l1_sparse([first, second], alpha_l1=0.5)
    assert value.item() == 3
    value.backward()
    assert (first.grad.tolist(), second.grad.tolist()) == ([0.5, -0.5], [[0.0], [0.5]])
    assert l1_sparse([first.detach().bfloat16()], alpha_l1=0.5).dtype == torch.float32


@pytest.mark.parametrize("cut", [(8, 1), (2, 4)])
def test_the_penalty_counts_once_per_step(run: Any, tiny_model: Any, cut: tuple[int, int]):
    cutting = {"per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1]}
    plain = gradients(run, L1, {}, steps=1, folder="plain", **cutting)[0]
    found = gradients(run, L1, {"alpha_l1": 0.01}, steps=1, folder="l1", **cutting)[0]
    signs = torch.cat([p.detach().sign().flatten() for p in tiny_model(seed=1).parameters()])
    torch.testing.assert_close(found - plain, 0.01 * signs, rtol=1e-4, atol=1e-5)


def test_without_a_weight_it_is_fine_tuning_on_the_retain_set(run: Any):
    plain = gradients(run, "expunge.methods.finetune:finetune", {}, steps=1, folder="ft")[0]
    torch.testing.assert_close(gradients(run, L1, {}, steps=1, folder="l1")[0], plain, rtol=1e-5, atol=1e-7)
