"""One optimizer step: micro-batches in, an update of the weights out.

Nothing here depends on epochs, files or logs, so everything that needs a training step uses this one: the
loop, the stages of a procedure, relearning in memory, exact replay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from expunge.lm import runtime
from expunge.lm.labels import Batch
from expunge.methods.objective import Objective, StepInfo
from expunge.models.parallel import Parallel
from expunge.optim.rules import Step, StepRule, apart_of
from expunge.training.driver import Driver, StepCounts, count_step, place_of
from expunge.training.listeners import Listener, Moment
from expunge.training.order import MicroBatch
from expunge.training.places import special

Scheduler = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True)
class Update:
    """The result of a step.

    Attributes:
        losses: for each micro-batch, this rank's share of the step's loss, times the number of ranks; the
            mean over ranks of their sum is the loss.
        value_K: this rank's share of the mean over the step of each of `Driver.names`; NaN for a term of
            weight 0.
        grad_norm: 2-norm of the gradient before it was clipped.
        learning_rate: learning rate of the first parameter group in this step.
        counts: the divisors of the means.
    """

    losses: tuple[Tensor, ...]
    value_K: Tensor
    grad_norm: Tensor | float
    learning_rate: float
    counts: StepCounts


class Stepper:
    """Takes optimizer steps.

    Args:
        model: the model in training, wrapped by accelerate.
        optimizer: its optimizer, wrapped by accelerate.
        driver: computes the gradient of a micro-batch.
        accelerator: scales, clips and exchanges gradients.
        parallel: how the work is split over ranks.
        scheduler: called after each update; None = the learning rate is constant.
        rules: called around the step in this order, see `optim.rules`.
        max_grad_norm: the gradient is clipped to this 2-norm; 0 = not clipped.
        seed: seed of the rules' random numbers.
        listeners: called before and after each update.
        empty_cache_every: empty the GPU's cache every so many steps; None = never.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        driver: Driver,
        accelerator: Accelerator,
        parallel: Parallel,
        *,
        scheduler: Scheduler | None = None,
        rules: Sequence[StepRule] = (),
        max_grad_norm: float = 0.0,
        seed: int = 0,
        listeners: Sequence[Listener] = (),
        empty_cache_every: int | None = None,
    ) -> None:
        self.model, self.optimizer, self.driver, self.accelerator = model, optimizer, driver, accelerator
        self.parallel, self.scheduler, self.rules = parallel, scheduler, tuple(rules)
        self.max_grad_norm, self.seed, self.listeners = max_grad_norm, seed, tuple(listeners)
        self.empty_cache_every = empty_cache_every
        driver.keep_apart(apart_of(self.rules))
        objective = driver.objective
        self.sides = sorted(objective.sides)
        self.places = special(place_of(term) for term in objective.terms if term.kind == "token")

    def step(self, batches: Sequence[MicroBatch], at: StepInfo, counts: StepCounts | None = None) -> Update:
        """Take one optimizer step.

        Args:
            batches: this rank's micro-batches; each knows which of its rows count.
            at: step and epoch of the run.
            counts: the step's counts, where they are known; None = they are counted here.

        Returns:
            The result of the step. The gradients are cleared.
        """
        if counts is None:
            counts = count_step(batches, self.sides, self.parallel.all_sum, self.places)
        around = self._around(batches, counts, at)
        self.driver.objective.begin_step(at)
        self.model.train()
        if callable(to_train := getattr(self.optimizer, "train", None)):
            to_train()
        for rule in self.rules:
            rule.on_step_begin(self.model, around)

        losses: list[Tensor] = []
        value_K = torch.zeros(len(self.driver.names), device=self.parallel.device)
        for number, batch in enumerate(self._each(batches)):
            loss, share_K = self.driver.backward(
                self.model, batch, counts, self.accelerator.backward, self.accelerator.autocast, self._no_sync
            )
            losses.append(loss)
            value_K = value_K + share_K
            for listener in self.listeners:
                listener.after_micro_batch(number, len(batches))
        for rule in self.rules:
            rule.on_backward_done(self.model, around)
        if self.empty_cache_every and at.step % self.empty_cache_every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()

        # An infinite bound scales nothing, but gives the norm for the log.
        bound = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        grad_norm = runtime.whole(self.accelerator.clip_grad_norm_(self.model.parameters(), bound))
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        model, rate = self.accelerator.unwrap_model(self.model), float(inner.param_groups[0]["lr"])
        moment = Moment(at.step, model, inner, batches, counts, rate)
        for listener in self.listeners:
            listener.before_update(moment)
        self.optimizer.step()
        for listener in self.listeners:
            listener.after_update(moment)
        # A scaler that met an overflow has skipped the update.
        if self.scheduler is not None and not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.model.zero_grad()
        return Update(tuple(losses), value_K, grad_norm, rate, counts)

    def _each(self, batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """The micro-batches on the device; ranks exchange gradients during the last one only."""
        for number, batch in enumerate(batches):
            with nullcontext() if number == len(batches) - 1 else self._no_sync():
                yield cast(MicroBatch, send_to_device(batch, self.parallel.device))

    def _no_sync(self) -> AbstractContextManager[object]:
        """While open, ranks do not exchange gradients; split weights always exchange them, to stay split."""
        if self.parallel.sharded:
            return nullcontext()
        return cast(AbstractContextManager[object], self.accelerator.no_sync(self.model))

    def _around(self, batches: Sequence[MicroBatch], counts: StepCounts, at: StepInfo) -> Step:
        """What a rule sees of the step."""

        def again(keep: Callable[[str], bool] | None = None) -> None:
            """Compute the gradient of the terms of these sides again, with a copy of the driver."""
            active = [term for term in self.driver.objective.terms if term.weight != 0]
            terms = [term for term in active if keep is None or keep(term.side)]
            if terms:
                driver = copy.copy(self.driver)
                driver.objective, driver.apart = Objective(terms), None
                backward, autocast = self.accelerator.backward, self.accelerator.autocast
                for batch in self._each(batches):
                    driver.backward(self.model, batch, counts, backward, autocast, self._no_sync)

        def counted() -> Iterator[Batch]:
            for batch in batches:
                if any(batch["counted"]):
                    yield send_to_device(batch["sides"], self.parallel.device)

        def take_apart() -> list[Tensor] | None:
            return None if self.driver.apart is None else self.driver.apart.take()

        return Step(at.step, again, counted, self.seed, self.parallel.all_sum, take_apart=take_apart)
