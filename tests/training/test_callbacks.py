"""Transformers' own callbacks see each event of the loop, and what they ask for is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from expunge.core.errors import UserError
from expunge.training.listeners import Listener, Moment
from recorded import read_records


class Notes(TrainerCallback):
    """Notes each event with the step it came at."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def _note(self, event: str, state: Any) -> None:
        self.seen.append((event, state.global_step))


def _noting(event: str) -> Any:
    def note(self: Notes, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert kwargs["model"] is not None
        self._note(event, state)

    return note


for name in (
    "train_begin",
    "epoch_begin",
    "step_begin",
    "substep_end",
    "pre_optimizer_step",
    "optimizer_step",
    "step_end",
    "log",
    "evaluate",
    "save",
    "epoch_end",
    "train_end",
):
    setattr(Notes, f"on_{name}", _noting(name))


def test_events_come_in_transformers_order(trainer: Any) -> None:
    """13 rows by 2 x 2, one epoch; logged and evaluated at step 2, saved at step 2 and at the end."""
    notes = Notes()
    trainer(
        extra={"callbacks": [notes], "evaluator": lambda model, step: {"forgetting": 0.5}},
        num_train_epochs=1,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    ).run()
    step = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end"]
    # Records of the evaluation are logged as well; the fourth step has one micro-batch.
    assert [event for event, _ in notes.seen] == [
        "train_begin",
        "epoch_begin",
        *step,
        *step,
        "log",
        "log",
        "evaluate",
        "save",
        *step,
        *[event for event in step if event != "substep_end"],
        "log",
        "log",
        "evaluate",
        "epoch_end",
        "save",
        "log",
        "train_end",
    ]
    assert [at for event, at in notes.seen if event == "step_end"] == [1, 2, 3, 4]


class StopsEpochs(TrainerCallback):
    """Ends every epoch after its second step."""

    def __init__(self) -> None:
        self.steps = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        control.should_epoch_stop = self.steps == 2


class Rows(Listener):
    """Notes the forget rows of each step."""

    def __init__(self) -> None:
        self.taken: list[list[int]] = []

    def before_update(self, moment: Moment) -> None:
        self.taken.append(
            [row for batch in moment.batches for row in batch["sides"]["forget"]["row"].tolist()]
        )


def test_an_epoch_that_a_callback_ends_is_followed_by_the_next_one_from_its_start(trainer: Any) -> None:
    whole, cut = Rows(), Rows()
    trainer(extra={"listeners": [whole]}).run()
    stopped = trainer(extra={"listeners": [cut], "callbacks": [StopsEpochs()]})
    stopped.run()
    assert stopped.state.global_step == 4
    assert cut.taken == [*whole.taken[:2], *whole.taken[4:6]]


def test_early_stopping_resumes_with_what_it_has_counted(trainer: Any, tmp_path: Path) -> None:
    """Patience 3, and no evaluation improves: stopped at the third after the best, resumed or not."""
    args = {
        "num_train_epochs": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": True,
    }

    def run(folder: str, stop_at: int | None = None) -> Any:
        class Stops(Listener):
            def before_update(self, moment: Moment) -> None:
                if moment.step == stop_at:
                    raise KeyboardInterrupt

        callback = EarlyStoppingCallback(early_stopping_patience=3)
        extra = {
            "evaluator": lambda model, step: {"score": 1.0},
            "callbacks": [callback],
            "listeners": [Stops()],
        }
        return trainer(folder=tmp_path / folder, extra=extra, **args)

    (whole := run("whole")).run()
    with pytest.raises(KeyboardInterrupt):
        run("part", stop_at=3).run()
    (resumed := run("part")).run(True)
    assert whole.state.global_step == resumed.state.global_step == 4


def test_a_learning_rate_that_waits_for_a_metric_falls_when_it_does_not_improve(
    trainer: Any, tmp_path: Path
) -> None:
    args = {
        "num_train_epochs": 2,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 1, "factor": 0.1},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "score",
        "greater_is_better": False,
        "warmup_epochs": 0,
    }
    trainer(extra={"evaluator": lambda model, step: {"score": 1.0}}, **args).run()
    rates = [
        record["learning_rate"] for record in read_records(tmp_path / "run") if "learning_rate" in record
    ]
    # Evaluated after each of 8 steps: the first sets the best, two without improvement make it fall.
    assert rates == pytest.approx([1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2 + [1e-6])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"save_strategy": "best"}, "needs a metric"),
        ({"eval_on_start": True}, "no evaluation suite"),
        ({"eval_strategy": "epoch"}, "no evaluation suite"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 14}, "drops all 13 rows"),
    ],
)
def test_what_would_fail_in_the_loop_is_refused_before_it(
    args: dict[str, Any], match: str, trainer: Any
) -> None:
    with pytest.raises(UserError, match=match):
        trainer(**args)


def test_a_listener_sees_each_update_before_and_after(trainer: Any) -> None:
    class Looks(Listener):
        """Holds the gradient and the weights of each update."""

        def __init__(self) -> None:
            self.moved: list[float] = []
            self.ended = 0

        def before_update(self, moment: Moment) -> None:
            parameters = list(moment.model.parameters())
            norm = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
            assert float(norm) <= 1.0 + 1e-5  # clipped
            self.before = [p.detach().clone() for p in parameters]
            assert moment.counts.sequences["forget"] == (1 if moment.step == 3 else 4)

        def after_update(self, moment: Moment) -> None:
            now = list(moment.model.parameters())
            self.moved.append(
                max(float((a.detach() - b).abs().max()) for a, b in zip(now, self.before, strict=True))
            )
            assert any(p.grad is not None for p in now)
            assert self.moved[-1] <= 1.1 * moment.learning_rate

        def on_end(self) -> None:
            self.ended += 1

    looks = Looks()
    trainer(extra={"listeners": [looks]}, num_train_epochs=1, weight_decay=0.0, warmup_epochs=0).run()
    assert len(looks.moved) == 4
    assert min(looks.moved) > 0
    assert looks.ended == 1
