"""What a loss is: a function of named quantities, with a record of how it is averaged and weighed."""

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
"""The default of a hyper-parameter that has none."""


@dataclass(frozen=True)
class LossSpec:
    """What the decorator and the signature say of a loss.

    Attributes:
        name: the function's name, which is also the term's name in the logs and the component's in `compat`.
        kind: "sequence" = returns [B], averaged over sequences; "token" = returns [B, N], averaged over label
            tokens; "model" = a scalar of the parameters alone, counted once a step.
        gamma: weight of the loss as a method's own term; None = the user has to give it.
        alpha: weight of the retain term.
        retain: name of the retain term unless the configuration chooses another: nll, kl, embed_diff, none,
            or its module:function.
        paper: where the loss is defined.
        code: the authors' or the field's code, at a commit.
        needs: quantities it reads, in the order of its positional parameters.
        hyper: its keyword-only parameters with their defaults; `REQUIRED` where there is none.
        positive: the hyper-parameters that have to be above 0.
        skip: the hyper-parameter that says how many leading labels of each row do not count; empty = all
            count.
        places: the hyper-parameter that chooses the positions which are looked at, see
            `expunge.training.places`; empty = the labels.
        objective: what holds the method's state, called with its terms and schedule; None = `Objective`.
        schedule: name of the schedule of the weights unless the configuration chooses another.
        extra: further terms of the method's own: (key of the weight, module:function) each; the default
            weight is that loss's `gamma`.
        diagnostics: what to log beside the loss, by name: functions of the same quantities and
            hyper-parameters that return a value a sequence [B].
    """

    name: str
    kind: Kind
    gamma: float | None
    alpha: float
    retain: str
    paper: str
    code: str
    needs: tuple[Need, ...]
    hyper: Mapping[str, Any]
    positive: tuple[str, ...] = ()
    skip: str = ""
    places: str = ""
    objective: Callable[..., Any] | None = None
    schedule: str = "constant"
    extra: tuple[tuple[str, str], ...] = ()
    diagnostics: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)

    @property
    def side(self) -> str:
        """The side whose label tokens or sequences the loss is averaged over: the first it names; empty for the kind "model"."""
        return self.needs[0].side


class Loss(Protocol):
    """A decorated loss: quantities in, a loss per sequence [B], per label token [B, N] or of the model [] out."""

    spec: LossSpec

    def __call__(self, *quantities: Tensor, **hyper: Any) -> Tensor:
        """The loss, not reduced over the batch; its values where there is no label are never looked at."""


def loss(
    *,
    kind: Kind,
    gamma: float | None = 1.0,
    alpha: float = 1.0,
    retain: str = "none",
    positive: tuple[str, ...] = (),
    skip: str = "",
    places: str = "",
    objective: Callable[..., Any] | None = None,
    schedule: str = "constant",
    extra: tuple[tuple[str, str], ...] = (),
    diagnostics: Mapping[str, Callable[..., Tensor]] | None = None,
    paper: str = "",
    code: str = "",
) -> Callable[[F], F]:
    """Give a function of named quantities its `.spec`; nothing is registered.

    Args:
        kind: "sequence", "token" or "model".
        gamma: default weight of the term; None = required from the user.
        alpha: default weight of the retain term.
        retain: default retain term.
        positive: hyper-parameters that have to be above 0.
        skip: the hyper-parameter that says how many leading labels of a row do not count.
        places: the hyper-parameter that chooses the positions that are looked at.
        objective: the class of a method with a state.
        schedule: default schedule of the weights.
        extra: (key, module:function) of each further term of the method's own. `trainer.method_args.KEY` is
            its weight, whose default is the `gamma` of that loss; it takes the method's hyper-parameters of
            the same names. A literal: validation reads the source.
        diagnostics: values a sequence [B] to log beside the loss, by name, each a function of the loss's own
            parameters. The mean over the step's sequences is logged as `<loss>_<name>`, at no further pass.
        paper: where it is defined.
        code: code at a commit.

    Returns:
        A decorator that adds `.spec` and leaves the function otherwise as it is.

    Raises:
        ValueError: a positional parameter is not a quantity, there is none, or one has a default.
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
                    f"{parameter.name!r} of {function.__name__}: a quantity has no default, a hyper-parameter is keyword-only"
                )
        if not needs:
            raise ValueError(f"the loss {function.__name__} reads no quantity")
        unknown = [name for name in (*positive, skip, places) if name and name not in hyper]
        if unknown:
            raise ValueError(f"{function.__name__} has no hyper-parameter {unknown[0]!r}")
        taken = [key for key, _ in extra if key in hyper]
        if taken:
            raise ValueError(
                f"{taken[0]!r} of {function.__name__} is a hyper-parameter and the weight of a further term"
            )
        spec = LossSpec(
            function.__name__, kind, gamma, alpha, retain, paper, code, tuple(needs), MappingProxyType(hyper), positive, skip, places,
            objective, schedule, extra, MappingProxyType(dict(diagnostics or {})),
        )  # fmt: skip
        cast(Any, function).spec = spec
        return function

    return decorate
