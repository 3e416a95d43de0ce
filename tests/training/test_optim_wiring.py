"""Optimizers, rules and masks in the loop: the order of calls, any split of a step, and exact resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_resume import LAST, SETTINGS, assert_same, final_state

from expunge.config.stepping import MASK, bind_mask, bind_optimizer, bind_rules
from expunge.core.binding import Binder, Bound
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.optim import build
from expunge.optim.build import build_rules, optimizer_factory, rules_of
from expunge.optim.masks import MaskRule
from expunge.optim.rules import Step, StepRule, clear_gradients
from expunge.optim.sophia import Sophia
from expunge.pipelines.optimizer_setup import MASK_FILE, stepping_of
from ranks import on_ranks
from recorded import read_records

GRAD_DIFF = "expunge.methods.grad_diff:grad_diff"
SAM_SGD = {"handler": "sgd", "rules": {"sam": {"rho": 0.05}}}
# Three steps without an update: the optimizer's sums are then polynomials of gradients, without a division.
STILL = {"learning_rate": 1e-30, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 3}


def bound_sections(optimizer: Any, mask: Any) -> dict[str, Bound]:
    """`trainer.optimizer` and `trainer.mask` as validation binds them."""
    binder = Binder()
    if optimizer:
        bind_optimizer(binder, optimizer)
        bind_rules(binder, optimizer.get("rules"))
    if mask.get("handler"):
        bind_mask(binder, mask)
    binder.raise_found()
    return binder.bound


def mask_of(mask: Any, model: Any) -> Any:
    return build.mask_of(bound_sections({}, mask)[MASK], model)


def given(spec: Any, mask: Any = None) -> dict[str, Any]:
    """The arguments of a training for a specification, as `pipelines.optimizer_setup` builds them."""
    bound = bound_sections(spec, {})
    return {
        "optimizer_factory": optimizer_factory(bound),
        "rules_factory": partial(build_rules, rules_of(bound)),
        "mask": mask,
    }


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


@pytest.fixture
def plain(tiny_model: Any) -> Callable[[], Any]:
    """A model without dropout, so that passes can be compared."""
    return lambda: tiny_model(seed=2, num_hidden_layers=1)


class Noting(StepRule):
    """Records its arguments and the order of calls."""

    side = "forget"

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def attach(self, model: Any, optimizer: Any) -> None:
        self.calls.append(("attach", type(optimizer).__name__))

    def on_step_begin(self, model: Any, step: Step) -> None:
        assert all(parameter.grad is None for parameter in model.parameters())
        assert model.training
        rows = [len(batch["forget"]["input_ids"]) for batch in step.batches()]
        self.calls.append(("begin", step.number, rows))

    def on_backward_done(self, model: Any, step: Step) -> None:
        first = [parameter.grad.clone() for parameter in model.parameters()]
        clear_gradients(model)
        step.closure(lambda side: side == "alternate")
        assert all(parameter.grad is None for parameter in model.parameters())
        step.closure(lambda side: side == "forget")
        forget = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        step.closure(lambda side: side == "retain")
        for parameter, gradient in zip(model.parameters(), first, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        clear_gradients(model)
        step.closure()
        assert all(
            torch.equal(parameter.grad, gradient)
            for parameter, gradient in zip(model.parameters(), first, strict=True)
        )
        assert (forget - torch.cat([gradient.flatten() for gradient in first])).norm() > 0.1 * forget.norm()
        self.calls.append(("done", step.number, step.seed))

    def metrics(self) -> dict[str, float]:
        return {"noted": float(len(self.calls))}


def test_rules_are_called_about_each_step_and_can_have_its_gradient_again(
    trainer: Any, plain: Any, tmp_path: Path
) -> None:
    """13 rows in steps of 2 x 2: 4, 4, 4 and 1 rows. The closure gives the step's gradient bit for bit;
    summed by sides, it is nearly equal.
    """
    rule = Noting()
    trainer(model=plain(), extra={"rules_factory": lambda optimizer, mask: [rule]}, num_train_epochs=1).run()
    assert rule.calls[0] == ("attach", "AdamW")
    assert rule.calls[1::2] == [
        ("begin", 0, [2, 2]),
        ("begin", 1, [2, 2]),
        ("begin", 2, [2, 2]),
        ("begin", 3, [1]),
    ]
    assert rule.calls[2::2] == [("done", step, 3) for step in range(4)]
    assert [record["noted"] for record in read_records(tmp_path / "run") if "loss" in record] == [3, 5, 7, 9]


def test_nothing_chosen_changes_nothing_and_adamw_is_the_default(trainer: Any, tmp_path: Path) -> None:
    runs: dict[str, Any] = {}
    for name, extra in (("default", {}), ("empty", given({})), ("adamw", given({"handler": "adamw"}))):
        # Built right before it runs, because the construction seeds dropout.
        runs[name] = trainer(folder=tmp_path / name, extra=extra, num_train_epochs=1)
        runs[name].run()
    default = flat(runs["default"].model)
    assert torch.equal(flat(runs["empty"].model), default)
    assert torch.equal(flat(runs["adamw"].model), default)
    assert runs["empty"].stepper.rules == ()
    records = [list(read_records(tmp_path / name)[0]) for name in ("default", "empty")]
    assert records[0] == records[1]


@pytest.mark.parametrize("mode", ["gnb", "hutchinson", "empirical"])
def test_sophia_sums_up_the_same_however_a_step_is_cut(
    trainer: Any, plain: Any, tmp_path: Path, mode: str
) -> None:
    states = []
    for rows, cuts in ((4, 1), (1, 4)):
        run = trainer(
            folder=tmp_path / str(rows), model=plain(), extra=given({"handler": "sophia", "mode": mode,
            "every": 2}),
            per_device_train_batch_size=rows, gradient_accumulation_steps=cuts, **STILL,
        )  # fmt: skip
        run.run()
        optimizer = run.optimizer.optimizer
        assert isinstance(optimizer, Sophia)
        states.append(
            {
                key: torch.cat([s[key].flatten() for s in optimizer.state.values()])
                for key in ("exp_avg", "hessian")
            }
        )
    assert states[0]["hessian"].abs().max() > 0
    for state in states[1:]:
        for key, value in state.items():
            scale = float(states[0][key].abs().max())
            torch.testing.assert_close(value, states[0][key], rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "rule", [{"sam": {"rho": 0.05}}, {"random_smoothing": {"samples": 2, "sigma": 0.02}}]
)
def test_rules_that_move_weights_do_the_same_however_a_step_is_cut(
    trainer: Any, plain: Any, tmp_path: Path, rule: Any
) -> None:
    ends, start = [], flat(plain())
    for rows, cuts in ((4, 1), (1, 4)):
        run = trainer(
            folder=tmp_path / str(rows), model=plain(), extra=given({"handler": "sgd", "rules": rule}),
            per_device_train_batch_size=rows, gradient_accumulation_steps=cuts, max_steps=4,
            learning_rate=0.1, warmup_epochs=0,
        )  # fmt: skip
        run.run()
        ends.append(flat(run.model) - start)
    unruled = trainer(
        folder=tmp_path / "bare",
        model=plain(),
        extra=given({"handler": "sgd"}),
        max_steps=4,
        learning_rate=0.1,
        warmup_epochs=0,
    )
    unruled.run()
    assert (flat(unruled.model) - start - ends[0]).norm() > 0.01 * ends[0].norm()
    for end in ends[1:]:
        assert (end - ends[0]).norm() < 1e-3 * ends[0].norm()


@pytest.mark.parametrize("spec", [{}, {"handler": "sophia", "mode": "empirical"}, SAM_SGD])
def test_masked_weights_keep_their_bits_in_the_saved_model(
    trainer: Any, plain: Any, tmp_path: Path, spec: Any
) -> None:
    model = plain()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    mask = mask_of({"handler": "random", "ratio": 0.3}, model)
    assert mask is not None
    settings = {
        "save_strategy": "epoch",
        "num_train_epochs": 1,
        "weight_decay": 0.5,
        "learning_rate": 0.05,
        "warmup_epochs": 0,
    }
    trainer(model=model, extra=given(spec, mask), **settings).run()
    saved = load_file(str(tmp_path / "run" / "checkpoint-4" / "model.safetensors"))
    moved = 0
    for name, allowed in mask.allowed.items():
        assert torch.equal(saved[name][~allowed], start[name][~allowed]), name
        moved += int((saved[name][allowed] != start[name][allowed]).sum())
    assert moved > 0.5 * mask.num_allowed
    record = read_records(tmp_path / "run")[0]
    assert record["mask_share"] == pytest.approx(0.3, abs=1e-4)
    assert ("win_rate" in record) == (spec.get("handler") == "sophia")
    assert ("sam_grad_norm" in record) == (spec is SAM_SGD)


def test_a_mask_without_a_choice_of_optimizer(trainer: Any, plain: Any) -> None:
    model = plain()
    mask = mask_of({"handler": "random"}, model)
    run = trainer(model=model, extra={"mask": mask}, max_steps=1)
    run.run()
    assert [type(rule) for rule in run.stepper.rules] == [MaskRule]


def test_resumed_with_sophia_smoothing_and_a_mask_equals_uninterrupted(
    trainer: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """With dropout. Step 3 is between two curvature estimates (0 and 5), so h comes from the checkpoint."""
    spec = {"handler": "sophia", "every": 5, "rules": {"random_smoothing": {"sigma": 0.01}}}

    def start(folder: Path) -> Any:
        model = tiny_model(seed=1, attention_dropout=0.1, num_hidden_layers=1)
        return trainer(
            folder=folder,
            model=model,
            extra=given(spec, mask_of({"handler": "random", "ratio": 0.5}, model)),
            **SETTINGS,
        )

    start(tmp_path / "run").run()
    expected = final_state(tmp_path / "run")
    assert "win_rate" in expected["records"][0]
    for step in (6, LAST):
        (tmp_path / "run" / f"checkpoint-{step}").rename(tmp_path / str(step))
    torch.manual_seed(99)
    start(tmp_path / "run").run(True)
    assert_same(final_state(tmp_path / "run"), expected)


def test_a_state_of_another_mode_is_refused(trainer: Any, plain: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer(model=plain(), extra=given({"handler": "sophia", "mode": "off"}), **settings).run()
    with pytest.raises(UserError, match="mode off, but this run has mode gnb"):
        trainer(model=plain(), extra=given({"handler": "sophia"}), **settings).run(True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_ranks_take_the_steps_of_one(trainer: Any, objective: Any, plain: Any, tmp_path: Path) -> None:
    def run(folder: str, rows: int, cuts: int, **more: Any) -> None:
        model = plain()
        extra = given(
            {"handler": "sgd", "rules": {"sam": {"rho": 0.05}}},
            mask_of({"handler": "random", "ratio": 0.4}, model),
        )
        args = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": cuts,
            "num_train_epochs": 1,
            "use_cpu": True,
            **more,
        }
        args |= {"save_strategy": "epoch", "learning_rate": 0.1, "warmup_epochs": 0}
        trainer(folder=tmp_path / folder, task=objective(GRAD_DIFF), model=model, extra=extra, **args).run()

    run("one", 4, 1)
    on_ranks(2, lambda: run("two", 1, 2, ddp_backend="gloo"))
    one, two = (
        load_file(str(tmp_path / name / "checkpoint-4" / "model.safetensors")) for name in ("one", "two")
    )
    start, moved = plain().state_dict(), 0.0
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(two[name] == start[name], value == start[name]), name
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3


def test_a_rule_about_a_side_without_terms_is_refused(trainer: Any, retain_only: Any, objective: Any) -> None:
    finetuning = objective("expunge.methods.finetune:finetune", retain="none")
    run = trainer(task=finetuning, pairs=retain_only, extra={**given(SAM_SGD), "reference": None})
    with pytest.raises(
        UserError, match=r"SAM has side='forget', but the method has no term.*\n.*side=null, or one of retain"
    ):
        run.run()


# The pipeline's part


@pytest.fixture
def stepping(plain: Any, pairs: Any, tmp_path: Path) -> Callable[..., Any]:
    """`stepping(model=None, rows=2, sides=(...), **trainer)`: what the pipeline gives to the training."""
    data = pairs()
    rows_of = {
        side: SimpleNamespace(encoded=[data[row][side] for row in range(len(data))])
        for side in ("forget", "retain")
    }

    def build(
        model: Any = None,
        rows: int = 2,
        folder: str = "run",
        sides: tuple[str, ...] = ("forget", "retain"),
        **trainer: Any,
    ) -> Any:
        bound = bound_sections(trainer.get("optimizer", {}), trainer.get("mask", {}))
        cfg, run = (
            Config({"seed": 3, "trainer": trainer}, bound=bound),
            SimpleNamespace(path=tmp_path / folder),
        )
        args = SimpleNamespace(per_device_train_batch_size=rows, device=torch.device("cpu"))
        return stepping_of(cfg, run, model or plain(), {side: rows_of[side] for side in sides}, args, 4)

    return build


def test_nothing_chosen_is_nothing_made(stepping: Any, tmp_path: Path) -> None:
    found = stepping()
    assert (found["optimizer_factory"], found["mask"]) == (None, None)
    assert found["rules_factory"](None, None) == []
    assert stepping(mask={"handler": None})["mask"] is None
    assert not (tmp_path / "run").exists()


def test_a_mask_is_made_once_from_all_rows_and_kept_with_the_run(
    stepping: Any, plain: Any, pairs: Any, tmp_path: Path
) -> None:
    wagle = {"handler": "expunge.optim.scores:wagle", "ratio": 0.25}
    mask = stepping(mask=wagle)["mask"]
    assert mask.num_allowed == round(0.25 * mask.num_weights)
    # With other batches, a few weights at the threshold may change sides.
    other = stepping(mask=wagle, rows=7, folder="other")["mask"]
    apart = sum(int((mask.allowed[name] != other.allowed[name]).sum()) for name in mask.allowed)
    assert apart <= 4
    # A resumed run reads the stored mask; a mask from elsewhere is copied into the run.
    again = stepping(mask={**wagle, "ratio": 0.9})["mask"]
    assert again.num_allowed == mask.num_allowed
    read = stepping(mask={"path": str(tmp_path / "run" / MASK_FILE)}, folder="third")["mask"]
    assert all(torch.equal(read.allowed[name], mask.allowed[name]) for name in mask.allowed)
    assert (tmp_path / "third" / MASK_FILE).is_file()


def test_a_mask_of_another_model_is_refused(stepping: Any, tiny_model: Any) -> None:
    stepping(mask={"handler": "expunge.optim.scores:magnitude"})
    with pytest.raises(UserError, match="was made for another model"):
        stepping(
            model=tiny_model(seed=5, num_hidden_layers=1), mask={"handler": "expunge.optim.scores:magnitude"}
        )


def test_a_mask_without_its_rows_is_refused_and_leaves_nothing(stepping: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads the retain rows, and there are none"):
        stepping(mask={"handler": "expunge.optim.scores:wagle"}, sides=("forget",))
    assert not (tmp_path / "run" / MASK_FILE).exists()
