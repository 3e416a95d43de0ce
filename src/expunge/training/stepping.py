"""A Trainer whose step is taken by an optimizer of the user's choice, with rules around it and a mask over the weights (`optim`)."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from expunge.core.errors import Fault, UserError
from expunge.lm.labels import Batch
from expunge.methods.objective import Objective
from expunge.optim.arguments import OptimizerArgs
from expunge.optim.curvature import SophiaCurvature
from expunge.optim.masks import WeightMask
from expunge.optim.rules import Step, StepRule, apart_of
from expunge.training.driver import Driver, StepCounts
from expunge.training.order import MicroBatch
from expunge.training.resumable import ResumableTrainer

OptimizerFactory = Callable[[nn.Module, OptimizerArgs], torch.optim.Optimizer]
"""Builds the optimizer of a model, such as `optim.build.optimizer_factory` gives."""
RulesFactory = Callable[[torch.optim.Optimizer, WeightMask | None], Sequence[StepRule]]
"""The rules about an optimizer's step, the mask's last, such as `optim.build.build_rules` with its specification bound."""

UNSHARDED = "run it in one process or under DDP"


class SteppingTrainer(ResumableTrainer):
    """Builds the optimizer and calls the rules where `optim.rules` says; without them it is transformers' Trainer in both.

    Args:
        *args: as `ResumableTrainer`.
        optimizer_factory: builds the optimizer; None = the one that TrainingArguments name.
        rules_factory: gives the rules about its step; None = none but the mask's.
        mask: the weights that may be updated, made for the model as it is before training; None = all.
        **kwargs: as `ResumableTrainer`.

    Attributes:
        driver: computes gradients.
        rules: in the order in which they are called; empty until the optimizer is there.

    Raises:
        UserError: something that cannot work over sharded weights (see `check_sharding`).
    """

    driver: Driver
    _counts: StepCounts | None

    def __init__(
        self,
        *args: Any,
        optimizer_factory: OptimizerFactory | None = None,
        rules_factory: RulesFactory | None = None,
        mask: WeightMask | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer_factory, self.rules_factory, self.mask = optimizer_factory, rules_factory, mask
        self.rules: tuple[StepRule, ...] = ()
        self.mask_share = None if mask is None else mask.num_allowed / max(1, mask.num_weights)
        self._ruled = False
        self._batches: list[MicroBatch] = []
        self._num_done = 0
        check_sharding(self.args, chosen=optimizer_factory is not None, masked=mask is not None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, with its rules attached before accelerate wraps it."""
        if self.optimizer is None and self.optimizer_factory is not None:
            target: Any = self.model if model is None else model
            self.optimizer = self.optimizer_factory(target, self.args)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not self._ruled:
            if self.rules_factory is not None:
                self.rules = tuple(self.rules_factory(optimizer, self.mask))
            elif self.mask is not None:
                self.rules = (self.mask.rule(),)
            check_sharding(self.args, rules=self.rules)
            self._check_sides()
            self.driver.keep_apart(apart_of(self.rules))
            for rule in self.rules:
                rule.attach(cast(nn.Module, self.model), optimizer)
            self._ruled = True
        return optimizer

    def _check_sides(self) -> None:
        """A rule about the terms of a side would do nothing, and say nothing, where there are none."""
        sides = sorted({term.side for term in self.objective.terms})
        asked = [
            (type(rule).__name__, side)
            for rule in self.rules
            if (side := getattr(rule, "side", None)) is not None
        ]
        faults = [
            Fault(
                f"{name} is about terms averaged over the side {side!r}, and there is none",
                f"give side=null, or of {', '.join(sides)}",
            )
            for name, side in asked
            if side not in sides
        ]
        if faults:
            raise UserError.of(faults)

    def step_of(self, batches: list[MicroBatch]) -> None:
        """Say which micro-batches the next step is of; they are kept where a rule may go through them again."""
        self._batches, self._num_done = (batches if self.rules else []), 0

    def begin_step(self) -> None:
        """Outside of any context that keeps ranks from exchanging gradients, once the objective knows the step."""
        super().begin_step()
        if self.rules:
            model = self.model_wrapped.train()
            step = self._step(model)
            for rule in self.rules:
                rule.on_step_begin(model, step)

    def micro_batch_done(self, model: nn.Module) -> None:
        """Call the rules once the last micro-batch of the step is back-propagated."""
        self._num_done += 1
        if self.rules and self._num_done == len(self._batches):
            step = self._step(model)
            for rule in self.rules:
                rule.on_backward_done(model, step)

    def rule_metrics(self) -> dict[str, float]:
        """What the rules say of the last step, and the share of the weights that the mask is over which may be updated."""
        found = {name: value for rule in self.rules for name, value in rule.metrics().items()}
        return found if self.mask_share is None else {**found, "mask_share": self.mask_share}

    def _step(self, model: nn.Module) -> Step:
        return Step(
            number=self.state.global_step,
            closure=partial(self._gradients, model),
            batches=self._counted,
            seed=self.args.seed,
            all_sum=self._all_sum,
            autocast=self.compute_loss_context_manager,
            take_apart=self._take_apart,
        )

    def _take_apart(self) -> list[Tensor] | None:
        return None if self.driver.apart is None else self.driver.apart.take()

    def _counted(self) -> Iterator[Batch]:
        for batch in self._batches:
            if any(batch["counted"]):
                yield cast(MicroBatch, self._prepare_inputs(cast(Any, batch)))["sides"]

    def _gradients(self, model: nn.Module, keep: Callable[[str], bool] | None = None) -> None:
        """`optim.rules.Closure`: the gradient of the terms averaged over the sides kept, by a driver like that of the step."""
        terms = [
            term for term in self.objective.terms if term.weight != 0 and (keep is None or keep(term.side))
        ]
        if not terms:
            return
        assert self._counts is not None, "the step has been counted before any rule is called"
        driver = copy.copy(self.driver)
        driver.objective, driver.apart = Objective(terms), None
        no_sync = partial(self.accelerator.no_sync, model)
        for number, inputs in enumerate(self._batches):
            batch = cast(MicroBatch, self._prepare_inputs(cast(Any, inputs)))
            with (
                nullcontext() if number == len(self._batches) - 1 else no_sync(),
                self.compute_loss_context_manager(),
            ):
                driver.backward(
                    model, batch, self._counts, self._backward, self.accelerator.autocast, no_sync
                )

    def _backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))

    def _all_sum(self, value: Tensor) -> Tensor:
        total = self.accelerator.reduce(value.to(self.args.device), reduction="sum")
        assert isinstance(total, Tensor)
        return total


def sharded_by(args: TrainingArguments) -> str | None:
    """What splits the weights over the ranks of this launch, by the arguments or by `accelerate launch`; None where nothing does."""
    if args.deepspeed or _launched_with("ACCELERATE_USE_DEEPSPEED"):
        return "DeepSpeed"
    return "FSDP" if args.fsdp or _launched_with("ACCELERATE_USE_FSDP") else None


def _launched_with(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def check_sharding(
    args: TrainingArguments, *, chosen: bool = False, masked: bool = False, rules: Sequence[StepRule] = ()
) -> None:
    """Refuse what needs whole weights where they are sharded.

    DeepSpeed takes the step itself and shows neither gradients nor an optimizer's hooks; FSDP gives each rank
    a part of every weight, which neither a mask's places nor a norm or a noise over the whole model fits.
    Sophia's modes without an estimate of their own are per weight.

    Args:
        args: of the training.
        chosen: an optimizer was chosen by `trainer.optimizer`.
        masked: a mask was chosen by `trainer.mask`.
        rules: the rules about the step.

    Raises:
        UserError: all that cannot be.
    """
    how = sharded_by(args)
    if how is None:
        return
    faults = []
    if chosen and how == "DeepSpeed":
        faults.append(
            Fault(
                "trainer.optimizer is given, and DeepSpeed takes the optimizer's step itself",
                f"use trainer.args.optim, or {UNSHARDED}",
            )
        )
    if masked:
        faults.append(
            Fault(
                f"trainer.mask is given, and {how} splits the weights that it is over",
                f"leave the mask out, or {UNSHARDED}",
            )
        )
    for rule in rules:
        if isinstance(rule, SophiaCurvature) and rule.optimizer.mode in ("empirical", "off"):
            continue
        name = (
            f"Sophia in mode {rule.optimizer.mode!r}"
            if isinstance(rule, SophiaCurvature)
            else type(rule).__name__
        )
        faults.append(
            Fault(f"{name} needs whole weights, and {how} splits them", f"leave it out, or {UNSHARDED}")
        )
    if faults:
        raise UserError.of(faults)
