"""The number of own calls between the command line and a loss: a reader follows a batch through few files."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from expunge.cli.main import main
from expunge.methods import npo as method

MOST = 8


class Reached(BaseException):
    """Ends the run at the first call of the loss."""


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    def spy(*_: Tensor, **__: float) -> Tensor:
        for frame in traceback.extract_stack():
            path = Path(frame.filename)
            if "expunge" in path.parts and "site-packages" not in path.parts and "tests" not in path.parts:
                found.append(f"{path.parent.name}/{path.name}:{frame.name}")
        raise Reached

    own: Callable[..., Tensor] = method.npo
    monkeypatch.setattr(spy, "spec", own.spec, raising=False)  # type: ignore[attr-defined]
    monkeypatch.setattr(method, "npo", spy)
    return found


def test_a_loss_is_a_few_calls_from_the_command_line(frames: list[str], tmp_path: Path) -> None:
    words = ["unlearn", "experiment=unlearn/mini/default", "trainer=NPO", "eval=null", "task_name=x"]
    words += [
        f"paths.output_dir={tmp_path / 'x'}",
        "model.model_args.pretrained_model_name_or_path=expunge/mini",
    ]
    with pytest.raises(Reached):
        main([*words, "trainer.args.max_steps=1", "trainer.args.report_to=none"])
    assert frames == [
        "cli/main.py:main",
        "verbs/run.py:run",
        "pipelines/training_run.py:run_training",
        "training/loop.py:run",
        "training/step.py:step",
        "training/driver.py:backward",
    ]
    assert len(frames) + 1 <= MOST
