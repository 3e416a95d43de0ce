"""What an unlearning procedure is: a recipe of whole trainings and what is done between them, and what a run offers it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

from expunge.core.binding import Bound
from expunge.core.sides import SIDE_NAMES, SideName
from expunge.data.datasets import Dataset
from expunge.models.load import Loaded

F = TypeVar("F", bound=Callable[..., None])
FINAL = "final"
"""The name of the stage whose model is the run's own."""


class Stages(Protocol):
    """What a run offers a procedure. Each call is safe to repeat: what is complete is not done again, what was interrupted goes on."""

    @property
    def folder(self) -> Path:
        """Of the run."""

    @property
    def model_folder(self) -> Path:
        """Where the run's model goes."""

    @property
    def stages_folder(self) -> Path:
        """For what is needed on the way; removed at the end unless the user keeps it."""

    @property
    def model_args(self) -> Mapping[str, Any]:
        """The section `model.model_args`: the start model."""

    @property
    def pad_id(self) -> int:
        """Token to fill short rows with."""

    def finetuned(
        self, name: str, side: SideName, *, args: Mapping[str, Any] | None = None, whole: bool = False
    ) -> Path:
        """Finetune a copy of the start model (NLL, the run's `trainer.args`) on a side's rows; returns its folder, `stages/NAME`.

        Args:
            name: of the stage.
            side: whose rows it learns.
            args: put over the run's `trainer.args`.
            whole: an adapter is merged, so that the folder holds all weights under the start model's names.
        """

    def finetune(self, rows: Dataset) -> None:
        """Finetune the start model on these rows; what comes out is the run's model."""

    def load(self, folder: Path | None = None) -> Loaded:
        """The start model, or that of a stage's folder, for computing without gradients."""

    def notice(self, text: str) -> None:
        """Tell the user, and write it into the run's record."""


@dataclass(frozen=True)
class ProcedureSpec:
    """What the decorator and the signature say of a procedure.

    Attributes:
        name: the function's name.
        sides: the rows it is given, by the names of its positional parameters after the first.
        stages: the trainings it consists of, stage -> side; `final` = the one whose model is the run's. A
            keyword-only parameter of a stage's name holds TrainingArguments of that stage.
        whole_model: whether it computes with all weights, so that a start model that is an adapter, or in 4
            bits, does not do.
        paper: where it is defined.
        code: code at a commit.
    """

    name: str
    sides: tuple[SideName, ...]
    stages: Mapping[str, SideName]
    whole_model: bool = False
    paper: str = ""
    code: str = ""


def procedure(
    *,
    stages: Mapping[str, SideName],
    at_least_0: tuple[str, ...] = (),
    refused: Mapping[str, str] | None = None,
    whole_model: bool = False,
    paper: str = "",
    code: str = "",
) -> Callable[[F], F]:
    """Give a function `(stages, forget | retain..., *, hyper-parameters)` its `.spec`; nothing is registered.

    Values are written as literals: the binder reads them from the source, without importing it.

    Args:
        stages: see `ProcedureSpec`.
        at_least_0: the hyper-parameters that must not be negative.
        refused: "name=value" -> why that value, which the field has, cannot be had here.
        whole_model: see `ProcedureSpec`.
        paper: where it is defined.
        code: code at a commit.

    Raises:
        ValueError: a positional parameter that is no side, or a name that is no hyper-parameter.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        hyper = {item.name for item in parameters if item.kind is item.KEYWORD_ONLY}
        sides = [item.name for item in parameters if item.kind is not item.KEYWORD_ONLY]
        wrong = [name for name in sides if name not in SIDE_NAMES]
        wrong += [
            name
            for name in (*at_least_0, *(key.partition("=")[0] for key in refused or {}))
            if name not in hyper
        ]
        if wrong:
            raise ValueError(
                f"{function.__name__}: {wrong[0]!r} is neither a side of the data nor a hyper-parameter"
            )
        spec_sides = cast(tuple[SideName, ...], tuple(sides))
        cast(Any, function).spec = ProcedureSpec(
            function.__name__, spec_sides, MappingProxyType(dict(stages)), whole_model, paper, code
        )
        return function

    return decorate


@dataclass(frozen=True)
class Procedure:
    """A procedure with its hyper-parameters.

    Attributes:
        spec: of the function.
        run: the function with its hyper-parameters bound; called with the stages and a data set a side.
    """

    spec: ProcedureSpec
    run: Callable[..., None]


def procedure_of(chosen: Bound) -> Procedure:
    """The procedure that was bound, with its hyper-parameters.

    Raises:
        UserError: it cannot be imported.
    """
    function = chosen.load()
    return Procedure(function.spec, partial(function, **chosen.kwargs))
