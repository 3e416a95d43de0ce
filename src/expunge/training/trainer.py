"""The one training loop, for finetuning and unlearning alike: transformers' Trainer with our batches, sums, records and checkpoints."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TransformersProgress
from transformers.trainer_utils import IntervalStrategy

from expunge.core.errors import UserError, unknown
from expunge.core.files import without_nan
from expunge.core.layout import EXPUNGE, Layout
from expunge.lm import runtime
from expunge.methods.objective import Objective
from expunge.models.reference import Reference
from expunge.optim.masks import WeightMask
from expunge.training.callbacks import ProgressCallback, RecordCallback, arrange_loggers
from expunge.training.driver import Driver, Normalise, StepCounts, count_step, place_of
from expunge.training.order import (
    ORDER_FILE,
    Collate,
    CollateMicroBatch,
    EpochDataset,
    EpochItems,
    EpochLoader,
    MicroBatch,
    MicroBatches,
    order_seed,
    save_order,
)
from expunge.training.places import special
from expunge.training.progress import Plan
from expunge.training.quantities import check_servable
from expunge.training.records import RecordLog
from expunge.training.rng import preserved_rng
from expunge.training.stepping import OptimizerFactory, RulesFactory, SteppingTrainer

logger = logging.getLogger(__name__)

Evaluator = Callable[[nn.Module, int], Mapping[str, float | None]]
"""Evaluates the model at a step: metric values by name, None where a metric could not be computed."""


class UnlearnTrainer(SteppingTrainer):
    """Minimises an objective's terms over pairs of rows.

    Args:
        model: the model to train.
        args: from `training_arguments`; `output_dir` is the folder of the checkpoints.
        objective: the terms; each is averaged over the whole optimizer step (see `driver`).
        dataset: the rows, whose items are dicts of `Encoded` by side.
        collate: turns a list of items into a batch of tensors by side.
        reference: the model before unlearning, where a term reads it.
        evaluator: called every `eval_steps` or epoch; its values are logged with the prefix `eval_` and can
            be `metric_for_best_model`.
        processing_class: the tokenizer, saved beside the weights.
        normalise: see `Driver`; compat switch `driver.normalise`.
        sequential_terms: see `Driver`.
        optimizers: optimizer and scheduler, where they are not TrainingArguments' own.
        optimizer_factory: see `SteppingTrainer`; of `trainer.optimizer`.
        rules_factory: see `SteppingTrainer`; of `trainer.optimizer.rules`.
        mask: see `SteppingTrainer`; of `trainer.mask`.
        callbacks: further callbacks.
        run_dir: the run folder; None = `output_dir`.
        layout: the names of the files in it.

    Raises:
        UserError: a term that cannot be computed from what was given, or an evaluation strategy without an
            evaluator.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        dataset: EpochDataset,
        collate: Collate,
        reference: Reference | None = None,
        evaluator: Evaluator | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        normalise: Normalise = "step",
        sequential_terms: bool = True,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (
            None,
            None,
        ),
        optimizer_factory: OptimizerFactory | None = None,
        rules_factory: RulesFactory | None = None,
        mask: WeightMask | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        run_dir: Path | None = None,
        layout: Layout = EXPUNGE,
    ) -> None:
        _check(args, objective, dataset, reference, evaluator)
        if args.n_gpu > 1:
            # One process on several GPUs would be torch's DataParallel, which splits no nested batch.
            logger.warning(
                "using one of %d GPUs; start with `accelerate launch` or `torchrun` to use all", args.n_gpu
            )
            args._n_gpu = 1
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(
            model=model,
            args=args,
            train_dataset=EpochItems(dataset),
            # transformers asks for a dataset where an evaluation strategy is set; ours evaluates what it is
            # given otherwise.
            eval_dataset=[] if evaluator else None,
            data_collator=CollateMicroBatch(collate, objective.elsewhere),
            processing_class=processing_class,
            optimizers=optimizers,
            optimizer_factory=optimizer_factory,
            rules_factory=rules_factory,
            mask=mask,
            callbacks=list(callbacks),
        )
        if use_cache is not None:
            # transformers switches the cache off in the config, which is saved with the weights; the driver
            # does without it anyway.
            cast(Any, self.model).config.use_cache = use_cache
        self.objective, self.evaluator, self.rows = objective, evaluator, dataset
        self.driver = Driver(
            objective,
            reference,
            world_size=self.accelerator.num_processes,
            normalise=normalise,
            # DeepSpeed counts backward passes to know where a step ends.
            sequential_terms=sequential_terms and not self.is_deepspeed_enabled,
        )
        self.sides, self.places = (
            sorted(objective.sides),
            special(place_of(term) for term in objective.terms if term.kind == "token"),
        )
        self.order_seed = order_seed(args)
        rows_per_step = (
            args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * self.accelerator.num_processes
        )
        self.plan = Plan(
            rows_per_step, len(dataset), self.order_seed, tuple(term.name for term in objective.terms)
        )
        self.run_dir = self.checkpoint_dir if run_dir is None else run_dir
        self.records = RecordLog(layout.log_file(self.run_dir))
        self.tokens = 0
        self._clock = self._begun = time.monotonic()
        self._counts: StepCounts | None = None
        self._parameters: int | None = None
        for shown in (TransformersProgress, PrinterCallback):
            self.remove_callback(shown)
        self.add_callback(RecordCallback(self.records))
        self.add_callback(ProgressCallback())
        arrange_loggers(
            self.callback_handler, None if layout.boards is None else self.run_dir / layout.boards
        )

    def begin_run(self) -> None:
        """Write down the order of rows before the first step, and take up the running sums."""
        super().begin_run()
        if self.is_world_process_zero():
            save_order(
                self.run_dir / ORDER_FILE,
                len(self.rows),
                self.order_seed,
                self.plan.rows_per_step,
                self.state.num_train_epochs,
            )
        self.tokens, self._clock = 0, time.monotonic()
        self._begun = self._clock

    # Batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches; not prepared by accelerate, which would deal the rows to the ranks a second time."""
        args = self.args
        sampler = MicroBatches(
            len(self.rows),
            self._train_batch_size,
            self.order_seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            drop_last=args.dataloader_drop_last,
        )
        return EpochLoader(
            EpochItems(self.rows),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            # Of its own, so that starting an epoch draws nothing from the global random state.
            generator=runtime.generator(self.order_seed, "workers"),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> tuple[list[MicroBatch], None]:
        """The micro-batches of one optimizer step, and the counts over all of them and all ranks, which the driver divides by."""
        batches: list[MicroBatch] = []
        for _, batch in zip(range(num_batches), epoch_iterator, strict=False):
            batches.append(batch)
        self._counts = count_step(batches, self.sides, self._all_sum, self.places)
        self.tokens += sum(
            int(side["attention_mask"].sum())
            for batch in batches
            if any(batch["counted"])
            for side in batch["sides"].values()
        )
        self.step_of(batches)
        return batches, None

    # The step

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; its loss is scaled already, so nothing divides it again."""
        assert self._counts is not None, "get_batch_samples comes before every step"
        model.train()
        if callable(to_train := getattr(self.optimizer, "train", None)):
            to_train()
        batch = cast(MicroBatch, self._prepare_inputs(inputs))
        with self.compute_loss_context_manager():
            loss, value_K = self.driver.backward(
                model,
                batch,
                self._counts,
                self._backward,
                self.accelerator.autocast,
                partial(self.accelerator.no_sync, model),
            )
        self.step_values_K += value_K
        self.micro_batch_done(model)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0 and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Six operations a token and parameter, over all sides."""
        if self._parameters is None:
            count = getattr(self.model, "num_parameters", None)
            self._parameters = int(count(exclude_embeddings=True)) if callable(count) else 0
        tokens = sum(side["input_ids"].numel() for side in cast(MicroBatch, inputs)["sides"].values())
        return 6 * self._parameters * tokens

    # What it says

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a record and hand it to the callbacks."""
        if "loss" in logs:
            told = {**self._term_means(), **self.objective.report()}
            record = {"loss": logs.pop("loss"), **told, **logs, **self.rule_metrics(), **self._pace()}
            # The loop goes on with this very dict.
            logs.clear()
            logs.update(record)
        else:
            if "train_loss" in logs:
                logs["train_loss"] = self.mean_loss()
            # What was found is the caller's, who is not asked to carry what finding it cost.
            logs = {**logs, **self._cost()}
        super().log(logs, start_time)
        self.state.log_history[-1] = without_nan(self.state.log_history[-1])

    def _term_means(self) -> dict[str, float]:
        """Means of the terms' values and diagnostics since the last record, terms of weight 0 left out."""
        mean_K = self._all_sum(self.term_sums_K) / max(1, self.state.global_step - self.terms_from)
        self.term_sums_K, self.terms_from = torch.zeros_like(self.term_sums_K), self.state.global_step
        logged = self.driver.logged
        return {
            name: value
            for name, value in zip(self.driver.names, mean_K.tolist(), strict=True)
            if name in logged
        }

    def _pace(self) -> dict[str, float]:
        now = time.monotonic()
        tokens = int(self._all_sum(torch.tensor(self.tokens)).item())
        training = max(now - self._clock - self.paused, 1e-9)
        self.tokens, self._clock, self.paused = 0, now, 0.0
        cost = self._cost()
        return {
            "seconds": cost["seconds"],
            "tokens_per_second": round(tokens / training, 1),
            "peak_memory_mb": cost["peak_memory_mb"],
        }

    def _cost(self) -> dict[str, float]:
        """What the run has taken so far: seconds since its first step, or since it was resumed, and MiB."""
        return {"seconds": round(time.monotonic() - self._begun, 3), "peak_memory_mb": peak_memory_mb()}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Have the evaluator judge the model as it is now; leaves the random state as it found it.

        Raises:
            UserError: `metric_for_best_model` is none of its metrics.
        """
        assert self.evaluator is not None, "checked when the trainer was built"
        if self.is_in_train and self.resumed_from is not None and not self.control.should_evaluate:
            # `eval_on_start` is of the start of the run, not of every resume.
            return {}
        begun = time.monotonic()
        model = cast(nn.Module, self.model).eval()
        with preserved_rng(), torch.no_grad():
            found = self.evaluator(model, self.state.global_step)
        prefix = f"{metric_key_prefix}_"
        metrics = {
            name if name.startswith(prefix) else prefix + name: math.nan if value is None else float(value)
            for name, value in found.items()
        }
        self._check_best(metrics, prefix)
        metrics[f"{prefix}runtime"] = round(time.monotonic() - begun, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.paused += time.monotonic() - begun
        return metrics

    def _check_best(self, metrics: Mapping[str, float], prefix: str) -> None:
        asked = self.args.metric_for_best_model
        if asked is not None and (asked if asked.startswith(prefix) else prefix + asked) not in metrics:
            raise UserError.of([unknown("trainer.args.metric_for_best_model", asked, sorted(metrics))])


def peak_memory_mb() -> float:
    """Highest memory of this process so far in MiB: the accelerator's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _check(
    args: TrainingArguments,
    objective: Objective,
    dataset: EpochDataset,
    reference: Reference | None,
    evaluator: Evaluator | None,
) -> None:
    """Refuse before the loop starts what would fail in it."""
    if len(dataset) == 0:
        raise UserError("the training set is empty", "check the split and the data folder")
    strategy = IntervalStrategy(args.eval_strategy)
    if evaluator is None and strategy is not IntervalStrategy.NO:
        raise UserError(
            f"eval_strategy is {strategy.value!r}, but there is nothing to evaluate",
            "set up `eval`, or eval_strategy=no",
        )
    check_servable(objective.needs, tuple(dataset[0]), reference, objective.hidden)
