"""What a loss is: a function of named quantities, with a record of how it is averaged and weighted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, cast

from torch import Tensor

from expunge.core.needs import Need, parse_need

F = TypeVar("F", bound=Callable[..., Tensor])
Kind = Literal["sequence", "token", "model"]
REQUIRED = inspect.Parameter.empty
"""Marks a hyper-parameter without a default."""


@dataclass(frozen=True)
class LossSpec:
    """What the signature of a loss (the first three fields) and its decorator say.

    Attributes:
        name: the function's name; also the term's name in the logs and the component's name in `compat`.
        needs: quantities it reads, in the order of its positional parameters.
        hyper: its keyword-only parameters with their defaults; `REQUIRED` = no default.
        kind: "sequence" = returns [B], averaged over sequences; "token" = returns [B, N], averaged over label
            tokens; "model" = a scalar of the parameters only, computed once per optimizer step.
        gamma: weight of the loss as a method's own term; None = the user must give it.
        alpha: weight of the retain term.
        retain: default retain term: nll, kl, embed_diff, none, or a module:function.
        paper: where the loss is defined.
        code: the authors' or the field's code, at a commit.
        positive: the hyper-parameters that must be above 0.
        skip: the hyper-parameter that says how many leading labels of each row do not count; empty = all
            count.
        places: the hyper-parameter that chooses the positions that the loss reads, see
            `expunge.training.places`; empty = the labels.
        objective: the class of a method with a state, called with terms and schedule; None = `Objective`.
        schedule: name of the default schedule of the weights.
        extra: (key, module:function) of each further own term of the method. `trainer.method_args.KEY` is its
            weight; the default is the `gamma` of that loss. The term takes the method's hyper-parameters of
            the same names.
        diagnostics: values per sequence [B] to log beside the loss, by name: functions of the same quantities
            and hyper-parameters. The mean over the step's sequences is logged as `<loss>_<name>`, without a
            further pass.
    """

    name: str
    needs: tuple[Need, ...]
    hyper: Mapping[str, Any]
    kind: Kind
    gamma: float | None = 1.0
    alpha: float = 1.0
    retain: str = "none"
    paper: str = ""
    code: str = ""
    positive: tuple[str, ...] = ()
    skip: str = ""
    places: str = ""
    objective: Callable[..., Any] | None = None
    schedule: str = "constant"
    extra: tuple[tuple[str, str], ...] = ()
    diagnostics: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)

    @property
    def side(self) -> str:
        """The side it is averaged over, which is the first side it names; empty for the kind "model"."""
        return self.needs[0].side


class Loss(Protocol):
    """A decorated loss: maps quantities to a loss per sequence [B], per label token [B, N] or a scalar []."""

    spec: LossSpec

    def __call__(self, *quantities: Tensor, **hyper: Any) -> Tensor:
        """The loss, not reduced over the batch; values at positions without a label are ignored."""


def loss(**facts: Any) -> Callable[[F], F]:
    """Give a function of named quantities its `.spec`, and do not change it otherwise; nothing is registered.

    The keywords are the fields of `LossSpec`, from `kind` on; only `kind` is required. Write them as
    literals: validation reads the source without running it.

    Raises:
        ValueError: a positional parameter is not a quantity or has a default, there is no positional
            parameter, or a keyword names a hyper-parameter that does not exist.
    """

    def decorate(function: F) -> F:
        needs: list[Need] = []
        hyper: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                hyper[parameter.name] = parameter.default
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty:
                needs.append(parse_need(parameter.name))
            else:
                raise ValueError(
                    f"{parameter.name!r} of {function.__name__}: "
                    "a quantity has no default, a hyper-parameter is keyword-only"
                )
        if not needs:
            raise ValueError(f"the loss {function.__name__} reads no quantity")
        spec = LossSpec(function.__name__, tuple(needs), MappingProxyType(hyper), **facts)
        unknown = [name for name in (*spec.positive, spec.skip, spec.places) if name and name not in hyper]
        if unknown:
            raise ValueError(f"{function.__name__} has no hyper-parameter {unknown[0]!r}")
        taken = [key for key, _ in spec.extra if key in hyper]
        if taken:
            raise ValueError(
                f"{taken[0]!r} of {function.__name__} is a hyper-parameter and the weight of a further term"
            )
        cast(Any, function).spec = spec
        return function

    return decorate
