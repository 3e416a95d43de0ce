"""SIGUSR2: a training stops after its step with a checkpoint, other parts of a run at once; exit code 75."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_runs import Outcome, names, read, records

from expunge.core.preemption import EXIT_PREEMPTED, PREEMPTION, preemptible
from expunge.training.step import Stepper
from recorded import WALL_CLOCK

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")

Run = Callable[..., Outcome]
STEPS = (
    "trainer.args.max_steps=4", "trainer.args.logging_steps=1",
    "trainer.args.per_device_train_batch_size=4", "trainer.args.gradient_accumulation_steps=2",
)  # fmt: skip


def signal_in_step(count: int, patch: pytest.MonkeyPatch) -> None:
    """SIGUSR2 while the `count`-th step of the run is taken."""
    original, steps = Stepper.step, []

    def step(self: Stepper, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == count:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(self, *args)

    patch.setattr(Stepper, "step", step)


def lasting(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in records(folder)]


@pytest.mark.parametrize(
    ("step", "saving"), [(3, "trainer.args.save_strategy=no"), (4, "trainer.args.save_strategy=epoch")]
)
def test_a_preempted_run_resumes_to_the_very_same_weights(
    step: int, saving: str, unlearn: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unlearn(*STEPS, saving, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    with monkeypatch.context() as patch:
        signal_in_step(step, patch)
        stopped = unlearn(*STEPS, saving)
    assert stopped.code == EXIT_PREEMPTED
    assert "stopped by SIGUSR2; the same command continues" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert read(stopped.out / "run.json")["status"] == "interrupted"
    assert f"checkpoint-{step}" in names(stopped.out)
    assert "trained.json" not in names(stopped.out)
    torch.manual_seed(99)
    resumed = unlearn(*STEPS, saving)
    assert resumed.code == 0, resumed.stderr
    assert f"resuming from {stopped.out / f'checkpoint-{step}'}" in resumed.stderr
    assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()
    assert lasting(resumed.out) == lasting(whole.out)
    assert read(resumed.out / "run.json")["status"] == "complete"


def test_preempted_in_the_last_evaluation_only_evaluates_again(
    unlearn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "expunge.evaluation.collect.tokens.collect_tokens",
            lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR2),
        )
        stopped = unlearn("eval=few", "trainer=GradAscent")
    assert stopped.code == EXIT_PREEMPTED
    assert "trained.json" in names(stopped.out)
    again = unlearn("eval=few", "trainer=GradAscent")
    assert again.code == 0
    assert "is trained already" in again.stderr


def test_the_handler_is_there_for_the_run_alone() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with preemptible():
        assert signal.getsignal(signal.SIGUSR2) == PREEMPTION.on_signal
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_process_of_several_keeps_the_signals_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks would have to agree on the step; the signal ends them, and their newest checkpoint stays."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGUSR2)
    with preemptible():
        assert signal.getsignal(signal.SIGUSR2) == before
