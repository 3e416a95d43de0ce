"""Unlearning procedures: recipes of whole trainings and steps between them; and their interface to a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from expunge.core.binding import Bound
from expunge.core.sides import SIDE_NAMES, SideName
from expunge.data.datasets import Dataset
from expunge.models.load import Loaded

F = TypeVar("F", bound=Callable[..., None])


class Stages(Protocol):
    """Interface of a run for a procedure.

    A call can be repeated: completed work is not done again, and interrupted work is continued.
    """

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def model_folder(self) -> Path:
        """The folder for the model of the run."""

    @property
    def stages_folder(self) -> Path:
        """The folder for intermediate results; removed at the end unless the user keeps it."""

    @property
    def model_args(self) -> Mapping[str, Any]:
        """The section `model.model_args`, which describes the start model."""

    @property
    def pad_id(self) -> int:
        """Token to fill short rows with."""

    def finetuned(
        self, name: str, side: SideName, *, args: Mapping[str, Any] | None = None, whole: bool = False
    ) -> Path:
        """Finetune a copy of the start model (NLL, `trainer.args` of the run) on the rows of a side.

        Args:
            name: name of the stage.
            side: side whose rows the model learns.
            args: values that override `trainer.args` of the run.
            whole: merge an adapter, so that the folder has all weights, with the names of the start model.

        Returns:
            The folder of the model, `stages/NAME`.
        """

    def finetune(self, rows: Dataset) -> None:
        """Finetune the start model on these rows; the result is the model of the run."""

    def load(self, folder: Path | None = None) -> Loaded:
        """Load the start model, or the model in the folder of a stage, for computation without gradients."""

    def notice(self, text: str) -> None:
        """Show a notice to the user and write it into the run record."""


@dataclass(frozen=True)
class ProcedureSpec:
    """Facts about a procedure: the first two fields from the signature, the others from the decorator.

    Attributes:
        name: name of the function.
        sides: the sides whose rows it gets: the names of its positional parameters after the first.
        stages: its trainings, stage -> side; the model of the stage `final` is the model of the run. A
            keyword-only parameter with the name of a stage holds TrainingArguments of that stage.
        whole_model: whether it computes with all weights; then the start model must not be an adapter or in
            4 bits.
        paper: paper that defines it.
        code: code at a commit.
        at_least_0: the hyper-parameters that must not be negative.
        refused: "name=value" -> reason why this value, known from other frameworks, is not supported.
    """

    name: str
    sides: tuple[SideName, ...]
    stages: Mapping[str, SideName]
    whole_model: bool = False
    paper: str = ""
    code: str = ""
    at_least_0: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def procedure(**facts: Any) -> Callable[[F], F]:
    """Add `.spec` to a function `(stages, forget | retain..., *, hyper-parameters)`; nothing is registered.

    The keywords are the fields of `ProcedureSpec`, from `stages` on. All values must be literals, because the
    binder reads them from the source without importing it.

    Raises:
        ValueError: a positional parameter is not a side, or a name is not a hyper-parameter.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        hyper = {item.name for item in parameters if item.kind is item.KEYWORD_ONLY}
        sides = [item.name for item in parameters if item.kind is not item.KEYWORD_ONLY]
        spec = ProcedureSpec(function.__name__, cast(tuple[SideName, ...], tuple(sides)), **facts)
        named = (*spec.at_least_0, *(key.partition("=")[0] for key in spec.refused))
        wrong = [name for name in sides if name not in SIDE_NAMES]
        wrong += [name for name in named if name not in hyper]
        if wrong:
            raise ValueError(
                f"{function.__name__}: {wrong[0]!r} is neither a side of the data nor a hyper-parameter"
            )
        cast(Any, function).spec = spec
        return function

    return decorate


@dataclass(frozen=True)
class Procedure:
    """A procedure with its hyper-parameters; `run` gets the stages and one data set per side."""

    spec: ProcedureSpec
    run: Callable[..., None]


def procedure_of(chosen: Bound) -> Procedure:
    """Import a bound procedure, with its hyper-parameters."""
    function = chosen.load()
    return Procedure(function.spec, partial(function, **chosen.kwargs))
