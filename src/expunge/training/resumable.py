"""A Trainer whose checkpoints are complete or not there, and whose resumed runs equal uninterrupted ones."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging as transformers_logging

from expunge.core.errors import UserError
from expunge.methods.objective import Objective, StepInfo
from expunge.models.adapters import is_adapted, save_model
from expunge.training import checkpoint as checkpoints
from expunge.training.driver import Driver
from expunge.training.progress import Plan, RunningSums, load_objective, save_objective
from expunge.training.records import RecordLog
from expunge.training.rng import load_rng_state, save_rng_state

logger = logging.getLogger(__name__)

TRAINER_STATE_FILE = "trainer_state.json"
PICKLED_ARGUMENTS = "training_args.bin"


class ResumableTrainer(Trainer):
    """Saving and resuming; what is trained, and on what, is the subclass's.

    Attributes:
        checkpoint_dir: folder of the checkpoints, `output_dir` of the arguments.
        objective: whose state goes into checkpoints.
        driver: whose values are summed up.
        records: the run's log.
        plan: what a checkpoint must agree with.
        step_values_K: the driver's values in the step that runs, this rank's share.
        term_sums_K: sums of the driver's values since the last record, this rank's share.
        terms_from: step after which `term_sums_K` begins.
        paused: seconds since the last record that were not training.
    """

    objective: Objective
    driver: Driver
    records: RecordLog
    plan: Plan
    step_values_K: Tensor
    term_sums_K: Tensor
    terms_from: int
    paused: float
    # Set by transformers' loop, which declares them only as it runs.
    _tr_loss: Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoint_dir = Path(str(self.args.output_dir))
        self.resumed_from: Path | None = None
        self.epoch_over = False
        self._save_due = False
        self._updates_per_epoch = 0
        self.paused = 0.0
        self.add_callback(_LoopMarks(self))

    # Starting

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: True = the newest complete checkpoint of `checkpoint_dir`, the start where
                there is none; a path = that checkpoint; None or False = the start.
            *args: as transformers' Trainer.
            **kwargs: as transformers' Trainer.

        Returns:
            Steps done, mean loss over all of them, metrics.

        Raises:
            UserError: the checkpoint named is not there, half-written or damaged, or was made under other
                settings; or the run folder holds checkpoints and the run is to start anew.
        """
        self.resumed_from = self._choose_checkpoint(resume_from_checkpoint)
        kept = 0
        if self.resumed_from is not None:
            checkpoints.verify(self.resumed_from)
            kept = self.plan.check(self.resumed_from)
            load_objective(self.objective, self.resumed_from)
            logger.info("resuming from %s", self.resumed_from)
        if self.is_world_process_zero():
            self.records.cut(kept)
        self.accelerator.wait_for_everyone()
        try:
            source = None if self.resumed_from is None else str(self.resumed_from)
            return super().train(source, *args, **kwargs)
        except KeyboardInterrupt:
            newest = checkpoints.newest_complete_checkpoint(self.checkpoint_dir)
            advice = (
                f"run the same command again to resume from {newest}"
                if newest
                else "no checkpoint was written yet: it starts anew"
            )
            logger.warning("interrupted at step %d; %s", self.state.global_step, advice)
            raise

    def _choose_checkpoint(self, asked: str | Path | bool | None) -> Path | None:
        if self.is_world_process_zero():
            checkpoints.remove_half_written(self.checkpoint_dir)
        self.accelerator.wait_for_everyone()
        if asked is True:
            return checkpoints.newest_complete_checkpoint(self.checkpoint_dir)
        if asked:
            return Path(asked)
        stale = checkpoints.newest_complete_checkpoint(self.checkpoint_dir)
        if stale is not None:
            raise UserError(
                f"{stale.parent} holds checkpoints of an earlier run, the newest is {stale.name}",
                "resume it, or overwrite the run",
            )
        return None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        begun = super()._init_training_state(*args, **kwargs)
        best = checkpoints.checkpoint_folder(self.checkpoint_dir, self.state.best_global_step or 0)
        if self.state.best_global_step and best.is_dir():
            # The state names a path, which a run folder that was moved has left behind.
            self.state.best_model_checkpoint = str(best)
        return begun

    def begin_run(self) -> None:
        """Set the running sums: to zero, or to where the checkpoint left them. transformers starts them at zero in either case."""
        self.term_sums_K = torch.zeros(len(self.driver.names), device=self.args.device)
        self.step_values_K = torch.zeros_like(self.term_sums_K)
        self.terms_from, self.paused = self.state.global_step, 0.0
        if self.resumed_from is not None:
            sums = RunningSums.load(self.resumed_from, self.args.process_index, self.args.world_size)
            self._tr_loss, self.term_sums_K = sums.loss.to(self.args.device), sums.term_K.to(self.args.device)
            self._total_loss_scalar = sums.logged_loss
            self._globalstep_last_logged = self.terms_from = sums.logged_step

    # Running

    def begin_step(self) -> None:
        """Tell the objective where the run stands, before a step."""
        epochs = float(self.state.num_train_epochs)
        self.objective.begin_step(
            StepInfo(self.state.global_step, self.state.max_steps, float(self.state.epoch or 0.0), epochs)
        )

    def end_step(self) -> None:
        """Book the terms' values of a step, and tell the objective if it listens."""
        if type(self.objective).on_step is not Objective.on_step:
            total_K = cast(Tensor, self.accelerator.reduce(self.step_values_K, reduction="sum"))
            self.objective.on_step(dict(zip(self.driver.names, total_K.tolist(), strict=True)))
        self.term_sums_K = self.term_sums_K + self.step_values_K
        self.step_values_K = torch.zeros_like(self.term_sums_K)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._updates_per_epoch = kwargs["num_update_steps_per_epoch"]
        if self.state.global_step >= self.state.max_steps:
            # A run that was killed after its last step, in the middle of an epoch: transformers would take
            # one step more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.epoch_over and self._save_due:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        output: TrainOutput = super()._finalize_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        return TrainOutput(output.global_step, self.mean_loss(), output.metrics)

    def mean_loss(self) -> float:
        """Mean loss of all steps so far that were summed up, those before a resume included."""
        return self._total_loss_scalar / max(1, self.state.global_step)

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        ends_epoch = self.state.global_step % max(1, self._updates_per_epoch) == 0
        if not self.epoch_over and (
            ends_epoch or self.control.should_training_stop or self.control.should_epoch_stop
        ):
            # The epoch's end may log and evaluate once more at this very step. A checkpoint from before that
            # would resume after it, and the record would be lost: save then.
            self._save_due = True
            return
        self._save_due = False
        begun = time.monotonic()
        step = self.state.global_step
        folder, partial = (
            checkpoints.checkpoint_folder(self.checkpoint_dir, step),
            checkpoints.partial_folder(self.checkpoint_dir, step),
        )
        try:
            with checkpoints.disk_full_told(folder):
                self._fill_checkpoint(folder, partial)
                if self.args.should_save:
                    checkpoints.seal(partial, folder)
        finally:
            if self.args.should_save and partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(self.checkpoint_dir, self.args.save_total_limit, Path(best) if best else None)
        self.accelerator.wait_for_everyone()
        self.paused += time.monotonic() - begun

    def _fill_checkpoint(self, folder: Path, partial: Path) -> None:
        self.store_flos()
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        RunningSums(
            self._tr_loss, self.term_sums_K, self._total_loss_scalar, self._globalstep_last_logged
        ).save(partial, self.args.process_index)
        if self.args.should_save:
            if self.state.best_global_step:
                best = checkpoints.checkpoint_folder(self.checkpoint_dir, self.state.best_global_step)
                self.state.best_model_checkpoint = (
                    str(best) if best == folder or best.is_dir() else self.state.best_model_checkpoint
                )
            save_objective(self.objective, partial)
            self.plan.save(partial, self.records.count, weights_only=self.args.save_only_model)
            self.state.save_to_json(str(partial / TRAINER_STATE_FILE))
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        with _no_bar_a_checkpoint():
            if is_adapted(cast(nn.Module, self.model)):
                self._save_adapter(folder, state_dict)
            else:
                super()._save(str(folder), state_dict)
        # transformers pickles the arguments beside the weights; nothing reads that file, and unpickling one
        # runs whatever it says.
        (folder / PICKLED_ARGUMENTS).unlink(missing_ok=True)

    def _save_adapter(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """The adapter in training and the record of its base; transformers would save a frozen reference adapter as well."""
        if not self.args.should_save:
            return
        save_model(cast(nn.Module, self.model), folder, state_dict=state_dict)
        if self.processing_class is not None:
            cast(Any, self.processing_class).save_pretrained(str(folder))

    def _save_rng_state(self, output_dir: str) -> None:
        save_rng_state(Path(output_dir) / f"rng_state_{self.args.process_index}.safetensors")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"rng_state_{self.args.process_index}.safetensors"
        if path.is_file():
            load_rng_state(path)
        else:
            logger.warning(
                "%s is not there (another number of ranks?): dropout will differ from an uninterrupted run",
                path,
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = set(
            getattr(self.model, "all_tied_weights_keys", None)
            or getattr(self.model, "_tied_weights_keys", None)
            or ()
        )
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            raise UserError(
                f"the checkpoint's weights do not fit the model: missing {missing[:3]}, unexpected {load_result.unexpected_keys[:3]}",
                "resume with the model that the run was started with",
            )


@contextmanager
def _no_bar_a_checkpoint() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file of weights across the bar of the run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class _LoopMarks(TrainerCallback):
    """Tells the trainer where its loop is, at points that transformers only shows to callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_run()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.epoch_over = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.end_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.epoch_over = True
