"""The sums of a training since its last record: losses, terms, tokens, operations, time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments

from expunge.methods.objective import Objective
from expunge.models.parallel import Parallel
from expunge.optim.masks import WeightMask
from expunge.optim.rules import StepRule
from expunge.training.driver import Driver
from expunge.training.order import MicroBatch
from expunge.training.pace import Pace
from expunge.training.progress import RunningSums
from expunge.training.step import Update


class Books:
    """Adds up the values of steps, and makes records of them.

    Args:
        args: arguments of the training.
        model: the model in training, not wrapped.
        driver: its values are recorded; its objective gets the values of each step, if it listens.
        mask: the weights that may be updated; None = all.
        parallel: sums values over ranks.

    Attributes:
        sums: sums of this rank since the last record.
        pace: tokens and time.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: nn.Module,
        driver: Driver,
        mask: WeightMask | None,
        parallel: Parallel,
    ) -> None:
        self.args, self.driver, self.parallel = args, driver, parallel
        self.mask_share = None if mask is None else mask.num_allowed / max(1, mask.num_weights)
        self.listens = type(driver.objective).on_step is not Objective.on_step
        count = getattr(model, "num_parameters", None)
        self.num_parameters = int(count(exclude_embeddings=True)) if callable(count) else 0
        self.pace = Pace()
        self.begin(0, None)

    def begin(self, step: int, checkpoint: Path | None) -> None:
        """Start at a step, or with the sums of a checkpoint."""
        where = self.parallel.device
        if checkpoint is None:
            loss, term_K = torch.tensor(0.0, device=where), torch.zeros(len(self.driver.names), device=where)
            self.sums = RunningSums(loss, term_K, 0.0, step)
        else:
            self.sums = RunningSums.load(checkpoint, self.parallel.dp_rank, self.parallel.dp_size)
            self.sums.loss, self.sums.term_K = self.sums.loss.to(where), self.sums.term_K.to(where)
        self.flos = 0.0
        self.pace.begin()

    def add(self, update: Update, batches: Sequence[MicroBatch], state: TrainerState) -> None:
        """Add a step; `state.global_step` still is the number of steps before it."""
        sums = self.sums
        for loss in update.losses:
            if self.args.logging_nan_inf_filter and not math.isfinite(float(loss)):
                # As in transformers: the average of the steps since the last record instead.
                sums.loss = sums.loss + sums.loss / (1 + state.global_step - sums.logged_step)
            else:
                sums.loss = sums.loss + loss
        sums.term_K = sums.term_K + update.value_K
        if self.listens:
            total_K = self.parallel.all_sum(update.value_K)
            self.driver.objective.on_step(dict(zip(self.driver.names, total_K.tolist(), strict=True)))
        sides = [side for batch in batches if any(batch["counted"]) for side in batch["sides"].values()]
        tokens = sum(int(side["attention_mask"].sum()) for side in sides)
        self.pace.tokens += tokens
        if (asked := self.args.include_num_input_tokens_seen) != "no":
            here = tokens if asked == "non_padding" else sum(side["input_ids"].numel() for side in sides)
            state.num_input_tokens_seen += int(self.parallel.all_sum(torch.tensor(here)).item())
        for batch in batches:
            # Six operations per token and parameter, for all sides.
            width = sum(side["input_ids"].numel() for side in batch["sides"].values())
            self.flos += float(6 * self.num_parameters * width)

    def close(self, update: Update, state: TrainerState, rules: Sequence[StepRule]) -> dict[str, float]:
        """Make a record of the steps since the last record, and set the sums to zero.

        Args:
            update: the last of these steps.
            state: step and epoch of the training.
            rules: the rules of the step.

        Returns:
            The mean loss, each term's unweighted mean and diagnostics (without terms of weight 0), the report
            of the objective, the last step's gradient norm and learning rate, the report of the rules, and
            the cost.
        """
        sums, steps = self.sums, state.global_step - self.sums.logged_step
        loss = self._mean_over_ranks(sums.loss)
        mean_K = self.parallel.all_sum(sums.term_K) / max(1, steps)
        means = zip(self.driver.names, mean_K.tolist(), strict=True)
        logged = sums.logged_loss + loss
        zero, zero_K = torch.zeros_like(sums.loss), torch.zeros_like(sums.term_K)
        self.sums = RunningSums(zero, zero_K, logged, state.global_step)
        self.store_flos(state)
        norm = update.grad_norm
        return {
            "loss": loss / steps,
            **{name: value for name, value in means if name in self.driver.logged},
            **self.driver.objective.report(),
            "grad_norm": norm.item() if isinstance(norm, Tensor) else norm,
            "learning_rate": update.learning_rate,
            **{name: value for rule in rules for name, value in rule.metrics().items()},
            **({} if self.mask_share is None else {"mask_share": self.mask_share}),
            **self.pace.since_last(self.parallel.all_sum),
        }

    def mean_loss(self, step: int) -> float:
        """Mean loss of all steps so far, including those before a resume."""
        return (self.sums.logged_loss + self._mean_over_ranks(self.sums.loss)) / max(1, step)

    def store_flos(self, state: TrainerState) -> None:
        """Add the operations of all ranks since the last call to `state`."""
        here = torch.tensor(self.flos, dtype=torch.float64)
        state.total_flos += float(self.parallel.all_sum(here).item())
        self.flos = 0.0

    def _mean_over_ranks(self, value: Tensor) -> float:
        return float((self.parallel.all_sum(value) / self.parallel.dp_size).item())
