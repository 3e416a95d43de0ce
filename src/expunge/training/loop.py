"""The training loop of finetuning and unlearning, from the first step to the last.

`step` and `driver` compute a step, `checkpoint` writes checkpoints, `Training._fill` lists their contents.
The loop uses the arguments, schedules, state and callbacks of transformers, but not its Trainer.

The file is long on purpose: everything that decides what a run does, and when, is read here in one piece. How
a thing is done stands in the files that it calls.
"""

from __future__ import annotations

import inspect
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.trainer_utils import (
    IntervalStrategy,
    SaveStrategy,
    TrainOutput,
    enable_full_determinism,
    speed_metrics,
)
from transformers.utils import logging as transformers_logging

from expunge.core.engine import Engine
from expunge.core.errors import UserError, unknown
from expunge.core.files import without_nan
from expunge.core.layout import EXPUNGE, RunLayout
from expunge.methods.objective import Objective, StepInfo
from expunge.models.adapters import is_adapted
from expunge.models.outputs import unwrapped
from expunge.models.parallel import Parallel
from expunge.models.reference import Reference
from expunge.optim.masks import WeightMask
from expunge.training import checkpoint as checkpoints
from expunge.training.books import Books
from expunge.training.callbacks import Callbacks
from expunge.training.driver import Driver, Normalise
from expunge.training.launch import accelerator_of
from expunge.training.listeners import Listener
from expunge.training.order import (
    ORDER_FILE,
    Collate,
    EpochDataset,
    MicroBatch,
    loader_of,
    micro_batches,
    order_seed,
    save_order,
)
from expunge.training.progress import Invariants, load_objective, save_objective
from expunge.training.progress_bar import ProgressBar
from expunge.training.quantities import check_servable
from expunge.training.records import RecordLog
from expunge.training.rng import load_rng_state, preserved_rng, save_rng_state
from expunge.training.setup import (
    OptimizerFactory,
    RulesFactory,
    add_embedding_noise,
    optimizer_of,
    prepare_model,
    rules_of,
)
from expunge.training.shared_folder import check_shared
from expunge.training.step import Stepper, Update
from expunge.training.weights import (
    load_optimizer,
    load_schedule,
    load_weights,
    save_optimizer,
    save_schedule,
    save_shards,
)

logger = logging.getLogger(__name__)

Evaluator = Callable[[nn.Module, int], Mapping[str, float | None]]
"""Evaluates a model at a step: metric values by name; None = the metric could not be computed."""
MakeReference = Callable[[Parallel], Reference | None]

TRAINER_STATE_FILE = "trainer_state.json"


class Training:
    """Minimises an objective's terms over pairs of rows.

    Args:
        model: the model to train.
        args: from `training_arguments`; `output_dir` is the folder of the checkpoints.
        objective: the terms; each is averaged over the whole optimizer step (see `driver`).
        dataset: the rows; an item is a dict of `Encoded` by side.
        collate: turns a list of items into a batch of tensors by side.
        reference: the model before unlearning, if a term reads it; or a function that makes it, once it is
            known how the work is split, for the model whose weights are still whole.
        evaluator: called every `eval_steps` or epoch; its values are logged with the prefix `eval_` and can
            be `metric_for_best_model`.
        tokenizer: saved beside the weights.
        normalise: see `Driver`; compat switch `driver.normalise`.
        sequential_terms: see `Driver`.
        optimizer_factory: builds the optimizer; None = the one that TrainingArguments name.
        rules_factory: builds the rules of a step; None = only the mask's rule.
        mask: the weights that may be updated, computed for the start model; None = all.
        callbacks: transformers callbacks, besides those of `report_to`.
        listeners: called at each update, record and checkpoint, after the log and the progress bar.
        run_dir: the run folder; None = `output_dir`.
        layout: the names of the files in it.
        engine: how several processes share the run; None = what the launcher asks for.

    Attributes:
        events: transformers' callbacks, their state and their requests.
        books: sums since the last record.
        stepper: takes the steps; set when the training begins.

    Raises:
        UserError: a term cannot be computed from what was given, an evaluation strategy has no evaluator, or
            the launch differs from what the launcher was asked for.
    """

    stepper: Stepper

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        dataset: EpochDataset,
        collate: Collate,
        reference: Reference | MakeReference | None = None,
        evaluator: Evaluator | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        normalise: Normalise = "step",
        sequential_terms: bool = True,
        optimizer_factory: OptimizerFactory | None = None,
        rules_factory: RulesFactory | None = None,
        mask: WeightMask | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        listeners: Sequence[Listener] = (),
        run_dir: Path | None = None,
        layout: RunLayout = EXPUNGE,
        engine: Engine | None = None,
    ) -> None:
        _check(args, dataset, evaluator)
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        transformers_logging.set_verbosity(args.get_process_log_level())  # type: ignore[no-untyped-call]
        self.accelerator, self.parallel = accelerator_of(args, engine)
        if args.n_gpu > 1:
            logger.warning(
                "using one of %d GPUs; start with `accelerate launch` or `torchrun` to use all", args.n_gpu
            )
        self.model, self.args, self.objective, self.rows = model, args, objective, dataset
        self.evaluator, self.tokenizer, self.mask = evaluator, tokenizer, mask
        self.optimizer_factory, self.rules_factory = optimizer_factory, rules_factory
        before = reference(self.parallel) if callable(reference) else reference
        check_servable(objective.needs, tuple(dataset[0]), before, objective.hidden)
        self.driver = Driver(
            objective,
            before,
            parallel=self.parallel,
            normalise=normalise,
            sequential_terms=sequential_terms,
        )
        self.loader = loader_of(dataset, collate, args, self.parallel, objective.elsewhere)
        if not len(self.loader):
            raise UserError(
                f"trainer.args.dataloader_drop_last=true drops all {len(dataset)} rows: one batch needs more",
                "leave it out, or take smaller batches",
            )
        prepare_model(model, args, tokenizer, self.parallel)

        self.checkpoint_dir = Path(str(args.output_dir))
        self.run_dir = self.checkpoint_dir if run_dir is None else run_dir
        rows_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.parallel.dp_size
        )
        names = tuple(term.name for term in objective.terms)
        self.invariants = Invariants(rows_per_step, len(dataset), order_seed(args), names)
        self.records = RecordLog(layout.log_file(self.run_dir))
        boards = None if layout.boards is None else self.run_dir / layout.boards
        self.events = Callbacks(args, model, tokenizer, callbacks, boards)
        shown = [self.records, ProgressBar(drawn=not args.disable_tqdm)] if self.parallel.is_first else []
        self.listeners = [*shown, *listeners, self.events]
        self.books = Books(args, model, self.driver, mask, self.parallel)
        self._place_state()
        self.events.fire("on_init_end")

    @property
    def state(self) -> TrainerState:
        """Step, epoch and history of the training."""
        return self.events.state

    # From the first step to the last

    def run(self, resume: str | Path | bool | None = None) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume: True = the newest complete checkpoint, or the start if there is none; a path = that
                checkpoint; None or False = the start.

        Returns:
            Steps done, mean loss over all of them, metrics.

        Raises:
            UserError: the checkpoint is missing, incomplete, damaged or of other settings; or the run should
                start from the beginning, but its folder holds checkpoints.
        """
        if not self.args.save_on_each_node:
            check_shared(self.run_dir)
        checkpoint = self._checkpoint(resume)
        begun, cuts = time.time(), self.args.gradient_accumulation_steps
        with self._watched():
            first = self._begin(checkpoint)
            state = self.state
            self.events.fire("on_train_begin")
            if self.args.eval_on_start and checkpoint is None:
                self._evaluate()
            for epoch in range(state.global_step // self.updates_per_epoch, state.num_train_epochs):
                if state.global_step >= state.max_steps:
                    # A run that was killed after its last step.
                    break
                self.events.fire("on_epoch_begin")
                # Steps of this epoch that were done before a resume.
                done = first % self.updates_per_epoch if state.global_step == first else 0
                micro_batches(self.loader).set_epoch(epoch, skip=done * cuts)
                loaded = iter(self.loader)
                for number in range(done, self.updates_per_epoch):
                    batches: list[MicroBatch] = list(islice(loaded, cuts))
                    if checkpoint is not None and state.global_step == first:
                        load_rng_state(checkpoint, self.parallel.dp_rank)
                    at = StepInfo(
                        state.global_step, state.max_steps, state.epoch or 0.0, float(state.num_train_epochs)
                    )
                    self.events.fire("on_step_begin")
                    update = self.stepper.step(batches, at)
                    self.books.add(update, batches, state)
                    state.global_step += 1
                    state.epoch = epoch + min((number + 1) * cuts, len(self.loader)) / len(self.loader)
                    self.events.fire("on_step_end")
                    self._log_and_evaluate(update)
                    stops = self.events.control.should_epoch_stop or self.events.control.should_training_stop
                    saves = self.events.control.should_save
                    if stops or number == self.updates_per_epoch - 1:
                        # The end of the epoch may log and evaluate at this step too. Save after that, so that
                        # a resumed run does not lose the record.
                        break
                    if saves:
                        self._save()
                self.events.fire("on_epoch_end")
                self._log_and_evaluate(update)
                if saves or self.events.control.should_save:
                    self._save()
                if self.events.control.should_training_stop:
                    break
            return self._finish(begun, state.global_step - first)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Add noise to embeddings while open; then give advice if interrupted, and end the listeners."""
        alpha = self.args.neftune_noise_alpha
        noise = None if alpha is None else add_embedding_noise(self.model, alpha)
        try:
            yield
        except KeyboardInterrupt:
            newest = checkpoints.newest_complete_checkpoint(self.checkpoint_dir)
            advice = (
                f"run the same command again to resume from {newest}"
                if newest
                else "no checkpoint was written yet: the same command starts from the beginning"
            )
            logger.warning("interrupted at step %d; %s", self.state.global_step, advice)
            raise
        finally:
            for listener in self.listeners:
                listener.on_end()
            if noise is not None:
                noise.remove()

    # Before and after

    def _checkpoint(self, asked: str | Path | bool | None) -> Path | None:
        """Check the checkpoint to resume from, load its weights, and cut the log back to it; None = start."""
        if self.parallel.is_first:
            checkpoints.remove_half_written(self.checkpoint_dir)
        self.parallel.wait()
        newest = checkpoints.newest_complete_checkpoint(self.checkpoint_dir)
        if not asked and newest is not None:
            raise UserError(
                f"{newest.parent} holds checkpoints of an earlier run; the newest is {newest.name}",
                "resume from it, or start again with overwrite=true",
            )
        found = newest if asked is True else Path(asked) if asked else None
        kept = 0
        if found is not None:
            checkpoints.verify(found)
            kept = self.invariants.check(found)
            load_objective(self.objective, found)
            load_weights(self.model, found)
            logger.info("resuming from %s", found)
        if self.parallel.is_first:
            self.records.cut(kept)
        self.parallel.wait()
        return found

    def _begin(self, checkpoint: Path | None) -> int:
        """Build optimizer, schedule and stepper, restore their state, and return the number of steps done."""
        args = self.args
        self.accelerator.free_memory()
        self.updates_per_epoch = max(1, math.ceil(len(self.loader) / args.gradient_accumulation_steps))
        self._begin_state(checkpoint)
        plain = optimizer_of(self.model, args, self.optimizer_factory)
        rules = rules_of(self.rules_factory, plain, self.mask, self.objective)
        for rule in rules:
            rule.attach(self.model, plain)
        if self.parallel.sharded:
            # The weights were split before the optimizer was built.
            wrapped, self.optimizer = self.model, self.accelerator.prepare_optimizer(plain)
        else:
            wrapped, self.optimizer = self.accelerator.prepare(self.model, plain)
        self.scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=args.get_warmup_steps(self.state.max_steps),
            num_training_steps=self.state.max_steps,
            scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
        )
        # Some schedules move with a metric and not with the steps.
        self.waits = "metrics" in inspect.signature(self.scheduler.step).parameters
        self.stepper = Stepper(
            wrapped,
            self.optimizer,
            self.driver,
            self.accelerator,
            self.parallel,
            scheduler=None if self.waits else self.scheduler,
            rules=rules,
            max_grad_norm=args.max_grad_norm,
            seed=args.seed,
            listeners=self.listeners,
            empty_cache_every=args.torch_empty_cache_steps,
        )
        handler, step = self.events.handler, self.state.global_step
        handler.optimizer, handler.lr_scheduler = self.optimizer, self.scheduler
        handler.train_dataloader = self.loader
        self.books.begin(step, checkpoint)
        if checkpoint is not None:
            load_optimizer(self.model, checkpoint, self.optimizer)
            load_schedule(checkpoint, self.scheduler, self._scaler)
            for listener in self.listeners:
                listener.on_resume(checkpoint)
        wrapped.zero_grad()
        if self.parallel.is_first:
            path, fixed, epochs = self.run_dir / ORDER_FILE, self.invariants, self.state.num_train_epochs
            save_order(path, fixed.rows, fixed.seed, fixed.rows_per_step, epochs)
        for listener in self.listeners:
            listener.on_begin(step, self.state.max_steps)
        return step

    def _begin_state(self, checkpoint: Path | None) -> None:
        args, updates = self.args, self.updates_per_epoch
        if args.max_steps > 0:
            max_steps, epochs = args.max_steps, math.ceil(args.max_steps / updates)
        else:
            max_steps, epochs = math.ceil(args.num_train_epochs * updates), math.ceil(args.num_train_epochs)
        if checkpoint is None:
            self.events.state = TrainerState(train_batch_size=args.per_device_train_batch_size)
        else:
            self.events.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_FILE))
            best = checkpoints.checkpoint_folder(self.checkpoint_dir, self.state.best_global_step or 0)
            # The stored path is wrong if the run folder was moved.
            found = self.state.best_global_step and best.is_dir()
            self.state.best_model_checkpoint = str(best) if found else None
            if args.restore_callback_states_from_checkpoint:
                self.events.restore()
        # Also for a resumed run, whose logging and evaluation steps may be others now.
        self.state.compute_steps(args, max_steps)  # type: ignore[no-untyped-call]
        self.state.max_steps, self.state.num_train_epochs = max_steps, epochs
        self._place_state()

    def _place_state(self) -> None:
        self.state.is_world_process_zero = self.parallel.is_first
        self.state.is_local_process_zero = self.accelerator.is_local_main_process

    def _finish(self, begun: float, steps: int) -> TrainOutput:
        state, args = self.state, self.args
        if args.max_steps > 0:
            samples = float(args.max_steps * self.invariants.rows_per_step)
        else:
            samples = len(self.rows) * args.num_train_epochs
        metrics: dict[str, float] = speed_metrics(  # type: ignore[no-untyped-call]
            "train", begun, num_samples=samples * steps / max(state.max_steps, 1), num_steps=steps
        )
        self.books.store_flos(self.state)
        mean = self.books.mean_loss(state.global_step)
        self._record(
            {**metrics, "total_flos": state.total_flos, "train_loss": mean, **self.books.pace.cost()}
        )
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint)
            logger.info("loading the best model: %s (%s)", best, state.best_metric)
            load_weights(self.model, best)
            if self.parallel.is_first and args.save_total_limit == 1:
                for other in checkpoints.complete_checkpoints(self.checkpoint_dir):
                    if other != best:
                        checkpoints.remove_checkpoint(other)
        self.events.fire("on_train_end")
        return TrainOutput(state.global_step, mean, metrics)

    # Recording

    def _log_and_evaluate(self, update: Update) -> None:
        """Log and evaluate if the callbacks asked for it, after a step or an epoch."""
        control = self.events.control
        if control.should_log and self.state.global_step > self.books.sums.logged_step:
            self._record(self.books.close(update, self.state, self.stepper.rules))
        if self.events.control.should_evaluate:
            improved = self._is_best(self._evaluate())
            if self.args.save_strategy == SaveStrategy.BEST:
                self.events.control.should_save = improved

    def _record(self, record: dict[str, float]) -> None:
        """Give a record to all callbacks and listeners."""
        record["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            record["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        self.state.log_history.append({**without_nan(record), "step": self.state.global_step})
        self.events.fire("on_log", record)
        for listener in self.listeners:
            listener.on_record(self.state.global_step, record)

    # Evaluating

    def _evaluate(self) -> dict[str, float]:
        """Evaluate the current model; the random state does not change.

        Raises:
            UserError: `metric_for_best_model` is not one of the evaluator's metrics.
        """
        assert self.evaluator is not None, "checked when the training was built"
        begun = time.monotonic()
        with preserved_rng(), torch.no_grad():
            found = self.evaluator(self.model.eval(), self.state.global_step)
        metrics = {
            _prefixed(name): math.nan if value is None else float(value) for name, value in found.items()
        }
        asked = self.args.metric_for_best_model
        if asked is not None and _prefixed(asked) not in metrics:
            raise UserError.of([unknown("trainer.args.metric_for_best_model", asked, sorted(metrics))])
        metrics["eval_runtime"] = round(time.monotonic() - begun, 3)
        self._record({**metrics, **self.books.pace.cost()})
        self.events.fire("on_evaluate", metrics)
        self.books.pace.paused += time.monotonic() - begun
        if self.waits and asked is not None and self.state.global_step:
            cast(Any, self.scheduler).step(metrics[_prefixed(asked)])
        return metrics

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether `metric_for_best_model` is better than before; stores the best value."""
        asked, state = self.args.metric_for_best_model, self.state
        if asked is None:
            return False
        value, sign = metrics[_prefixed(asked)], 1.0 if self.args.greater_is_better else -1.0
        best = -sign * math.inf if state.best_metric is None else state.best_metric
        state.best_metric = best
        if not sign * value > sign * best:
            return False
        state.best_metric = value
        if self.args.save_strategy != SaveStrategy.NO:
            state.best_global_step = state.global_step
        return True

    # Saving

    @property
    def _scaler(self) -> Any:
        return getattr(self.accelerator, "scaler", None)

    def _save(self) -> None:
        """Write a checkpoint, completely or not at all; all ranks call this."""
        begun, step, writes = time.monotonic(), self.state.global_step, self.args.should_save
        folder = checkpoints.checkpoint_folder(self.checkpoint_dir, step)
        partial = checkpoints.partial_folder(self.checkpoint_dir, step)
        try:
            with checkpoints.reporting_full_disk(folder):
                if writes:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
                self.parallel.wait()
                self._fill(partial, folder)
                self.parallel.wait()
                if writes:
                    checkpoints.seal(partial, folder)
        finally:
            if writes and partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
        if writes:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(self.checkpoint_dir, self.args.save_total_limit, Path(best) if best else None)
        self.parallel.wait()
        self.books.pace.paused += time.monotonic() - begun
        self.events.fire("on_save")

    def _fill(self, partial: Path, folder: Path) -> None:
        """Write everything that a resumed run needs to equal an uninterrupted one."""
        rank, writes, state = self.parallel.dp_rank, self.args.should_save, self.state
        self.books.store_flos(self.state)
        # An adapter of split weights is only read back from shards.
        if self.parallel.sharded and (is_adapted(unwrapped(self.model)) or not self.args.save_only_model):
            save_shards(self.model, partial)
        else:
            self.parallel.save(self.model, partial, self.tokenizer, writes=writes)
        self.books.sums.save(partial, rank)
        if not self.args.save_only_model:
            save_rng_state(partial, rank)
            save_optimizer(self.model, partial, self.optimizer, writes=writes)
            if writes:
                save_schedule(partial, self.scheduler, self._scaler)
        for listener in self.listeners:
            listener.on_save(partial)
        if state.best_global_step:
            # On every rank: all of them load it at the end.
            best = checkpoints.checkpoint_folder(self.checkpoint_dir, state.best_global_step)
            if best == folder or best.is_dir():
                state.best_model_checkpoint = str(best)
        if writes:
            save_objective(self.objective, partial)
            self.invariants.save(partial, self.records.count, weights_only=self.args.save_only_model)
            state.stateful_callbacks = cast(Any, self.events.states())
            state.save_to_json(str(partial / TRAINER_STATE_FILE))


def _prefixed(name: str) -> str:
    return name if name.startswith("eval_") else f"eval_{name}"


def _check(args: TrainingArguments, dataset: EpochDataset, evaluator: Evaluator | None) -> None:
    """Refuse, before the loop starts, settings that would fail in it."""
    if len(dataset) == 0:
        raise UserError("the training set is empty", "check the split and the data folder")
    strategy = IntervalStrategy(args.eval_strategy)
    if evaluator is None and (strategy is not IntervalStrategy.NO or args.eval_on_start):
        never = strategy is IntervalStrategy.NO
        asked, off = ("eval_on_start", "false") if never else (f"eval_strategy={strategy.value}", "no")
        raise UserError(
            f"trainer.args.{asked}: no evaluation suite is configured",
            f"choose one under `eval`, or set trainer.args.{asked.partition('=')[0]}={off}",
        )
    if args.save_strategy == SaveStrategy.BEST and args.metric_for_best_model is None:
        raise UserError(
            "trainer.args.save_strategy=best needs a metric",
            "give trainer.args.metric_for_best_model and trainer.args.eval_strategy",
        )
