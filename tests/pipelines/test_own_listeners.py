"""`trainer.listeners`: a user's own listeners and callbacks, from the command line to the effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mini_runs import Outcome, names

Run = Callable[..., Outcome]
MODULE = '''"""A user's own listeners."""

from pathlib import Path

from transformers import TrainerCallback

from expunge.training.listeners import Listener

WRITTEN = Path(__file__).with_name("written")


def note(text):
    with WRITTEN.open("a") as file:
        file.write(f"{text}\\n")


class Watch(Listener):
    """Notes the learning rate of every few steps."""

    def __init__(self, *, every: int = 1, name: str = "rate") -> None:
        self.every, self.name = every, name

    def after_update(self, moment):
        if moment.step % self.every == 0:
            note(f"{self.name} {moment.step} {moment.learning_rate > 0}")


class Quiet(Watch):
    """Inherits its keywords."""


class Stop(TrainerCallback):
    def __init__(self, step=1):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        note(f"stop? {state.global_step}")
        control.should_training_stop = state.global_step >= self.step


class Other:
    """No listener."""
'''


@pytest.fixture
def written(config_dir: Path) -> Path:
    """The file that the listeners of the module `watching` write."""
    (config_dir / "watching.py").write_text(MODULE)
    found = config_dir / "written"
    found.unlink(missing_ok=True)
    return found


def test_listeners_and_callbacks_see_the_steps(unlearn: Run, written: Path) -> None:
    listed = "trainer.listeners=[{handler: 'watching:Quiet', every: 2, name: lr}, 'watching:Stop']"
    done = unlearn("trainer=GradAscent", "trainer.args.max_steps=3", listed)
    assert done.code == 0, done.stderr
    # The warm-up begins at a rate of 0; the callback stops the run after its first step.
    assert written.read_text().splitlines() == ["lr 0 False", "stop? 1"]
    again = unlearn("trainer=GradAscent", "trainer.args.max_steps=3")
    assert again.code == 2
    assert "trainer.listeners" in again.stderr


def test_stages_of_a_procedure_have_them_too(expunge: Run, written: Path, start_model: Path) -> None:
    from mini_runs import QUIET, model_is

    done = expunge(
        "unlearn", "experiment=unlearn/mini/default", "procedure=task_vector", "eval=null", QUIET,
        "trainer.args.max_steps=2", "trainer.listeners=['watching:Watch']", model_is(start_model),
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert len(written.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("['watching:Wach']", ("trainer.listeners=['watching:Wach']: unknown name", "did you mean 'Watch'?")),
        ("['wotching:Watch']", ("there is no module 'wotching'",)),
        ("['watching:Other']", ("Other is not a listener", "expunge.training.listeners.Listener")),
        ("['watching:note']", ("note is not a listener",)),
        ("watching:Watch", ("must be a list", "trainer.listeners=[")),
        ("[{handler: 'watching:Watch', evry: 1}]", ("Watch takes no 'evry'", "did you mean 'every'?")),
        ("[{handler: 'watching:Watch', every: x}]", ("trainer.listeners.0.every=x: must be a whole number",)),
        ("[{handler: 'watching:Stop', stop: 1}]", ("Stop takes no 'stop'", "did you mean 'step'?")),
        ("[{every: 2}]", ("=[{every: 2}]: entry 0 names no class", "module:Class")),
        ("['watching:Watch', 2]", ("entry 1 names no class",)),
    ],
)
def test_faults(typed: str, words: tuple[str, ...], unlearn: Run, written: Path) -> None:
    found = unlearn(f"trainer.listeners={typed}")
    assert found.code == 2
    for word in words:
        assert word in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
    assert not found.out.exists()


def test_a_callback_of_transformers_is_found(unlearn: Run) -> None:
    """`transformers` resolves its names lazily; its source is read all the same."""
    name = "transformers:EarlyStoppingCallback"
    found = unlearn(f"trainer.listeners=[{{handler: '{name}', early_stopping_patience: x}}]")
    assert found.code == 2
    assert "early_stopping_patience=x: must be a whole number" in found.stderr
    assert names(found.out.parent).isdisjoint({"run"})
