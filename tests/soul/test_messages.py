"""Faults are reported in the words of the user: with SOUL's flags, or with our keys."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.cli.main import main
from expunge.soul.main import script
from expunge.soul.methods import METHODS

COMPOSITES = [name for name, method in METHODS.items() if method.required == "gamma"]
RUN = (
    "--model_name expunge/mini --task_name tofu --forget_dataset_name Tofu_forget10 --retain_dataset_name "
    "Tofu_retain90 --logger.name N"
)
# The composites whose weight has another name here than in SOUL.
OURS = [name for name in COMPOSITES if METHODS[name].keys["gamma"] == "alpha"]


def some(names: list[str]) -> list[Any]:
    """The first name runs always, the others are slow tests: each composes a configuration."""
    return [names[0], *(pytest.param(name, marks=pytest.mark.slow) for name in names[1:])]


def reported(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert script("unlearn_model", argv) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_missing_weight_is_souls_gamma(
    name: str, data_root: object, capsys: pytest.CaptureFixture[str]
) -> None:
    text = reported([*RUN.split(), "--unlearn.unlearn_method", name], capsys)
    assert f"{name} needs --unlearn.{name}.gamma" in text
    assert "alpha" not in text
    assert "trainer." not in text


@pytest.mark.parametrize("name", some(COMPOSITES))
def test_a_wrong_weight_is_souls_gamma(
    name: str, data_root: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN.split(), "--unlearn.unlearn_method", name]
    negative = reported([*run, f"--unlearn.{name}.gamma", "-2"], capsys)
    assert f"--unlearn.{name}.gamma -2: must be a number of at least 0" in negative
    assert f"for example --unlearn.{name}.gamma 0" in negative
    short = reported([*run, "--gamma", "-2"], capsys)
    assert "--unlearn.gamma -2: must be" in short
    for text in (negative, short):
        assert "alpha" not in text
        assert "trainer." not in text


@pytest.mark.parametrize("name", some(OURS))
def test_our_own_command_line_reports_our_own_key(
    name: str, data_root: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", f"trainer={METHODS[name].trainer}", "task_name=N"]) == 2
    text = capsys.readouterr().err
    assert "trainer.method_args.alpha is not given" in text
    assert "add trainer.method_args.alpha=VALUE" in text
    assert "unlearn." not in text


def test_other_values_are_reported_with_their_flags_too(
    data_root: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN.split(), "--unlearn.unlearn_method", "GA"]
    text = reported([*run, "--unlearn.lr", "-1", "--dataset.batch_size", "0"], capsys)
    assert "--unlearn.lr -1: must be a number above 0\n  -> for example --unlearn.lr 1e-5" in text
    assert "--dataset.batch_size 0: must be a whole number above 0" in text
    # An override after the flags is reported as typed.
    assert "trainer.args.learning_rate=-3: must be" in reported(
        [*run, "--unlearn.lr", "1", "trainer.args.learning_rate=-3"], capsys
    )
    assert (
        script("Fine_tune_tofu", ["--model_name", "expunge/mini", "--save_dir", "o", "--epochs", "-1"]) == 2
    )
    assert "--epochs -1: must be a number above 0" in capsys.readouterr().err
