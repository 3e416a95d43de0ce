"""From a configuration to an objective: which losses, with which hyper-parameters and weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from expunge.core.errors import Fault, UserError, unknown
from expunge.core.needs import Need
from expunge.methods.base import Kind, Loss
from expunge.methods.binding import as_number, bind, import_loss
from expunge.methods.retain import HANDLERS

log = logging.getLogger(__name__)

WEIGHT_KEYS = ("gamma", "alpha", "retain", "retain_loss_type")
"""Keys of `trainer.method_args` that are not hyper-parameters of the method's own loss."""


@dataclass
class Term:
    """One summand of an objective.

    Attributes:
        name: its name in the logs, unique in its objective.
        loss: the function of quantities.
        weight: what its mean is multiplied by; may change from step to step.
        kwargs: hyper-parameters, bound.
        needs: quantities it reads, in the order of the loss's positional parameters.
        kind: "sequence" or "token": what its mean is over.
    """

    name: str
    loss: Loss
    weight: float
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Quantities it reads."""
        return self.loss.spec.needs

    @property
    def kind(self) -> Kind:
        """What its mean is over."""
        return self.loss.spec.kind

    @property
    def side(self) -> str:
        """The side whose label tokens or sequences its mean is over."""
        return self.loss.spec.side

    def __call__(self, quantities: Mapping[str, Tensor]) -> Tensor:
        """The loss of quantities by name, [B] or [B, N], neither reduced nor weighted."""
        return self.loss(*(quantities[need.name] for need in self.needs), **self.kwargs)


@dataclass(frozen=True)
class StepInfo:
    """Where training stands at the beginning of an optimizer step.

    Attributes:
        step: optimizer steps done.
        num_steps: optimizer steps in all.
        epoch: epochs done, a fraction.
        num_epochs: epochs in all.
    """

    step: int
    num_steps: int
    epoch: float
    num_epochs: float


class Objective:
    """A weighted sum of terms. One with a state or a schedule overrides the four methods at the end.

    Args:
        terms: the summands; those of weight 0 are dropped, never computed.

    Raises:
        UserError: nothing is left to optimise.
    """

    def __init__(self, terms: tuple[Term, ...] | list[Term]) -> None:
        self.terms = tuple(term for term in terms if term.weight != 0)
        if not self.terms:
            raise UserError(
                "every term of the objective has weight 0: nothing to optimise", "give trainer.method_args.gamma or alpha another value"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Every quantity that some term reads, each once."""
        return tuple(dict.fromkeys(need for term in self.terms for need in term.needs))

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of a batch that are read, each once."""
        return tuple(dict.fromkeys(need.side for need in self.needs))

    @property
    def reference_needs(self) -> tuple[Need, ...]:
        """The quantities that come from the model before unlearning."""
        return tuple(need for need in self.needs if need.reference)

    def begin_step(self, info: StepInfo) -> None:
        """Called before each optimizer step: the place to set the terms' weights by a schedule."""

    def on_step(self, values: Mapping[str, float]) -> None:
        """Called after each optimizer step with every term's unweighted mean over the whole step, all ranks included."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep, tensors and JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            UserError: the state belongs to another objective.
        """
        if state:
            raise UserError(
                f"the checkpoint holds a state ({', '.join(sorted(state))}) that this objective does not have", "resume the same method"
            )


def build_objective(handler: str, method_args: Mapping[str, Any], switches: Callable[[str], Mapping[str, Any]] = lambda _: {}) -> Objective:
    """Build the objective of a run.

    Args:
        handler: the method's loss as "module:function".
        method_args: its hyper-parameters, `gamma` and `alpha` (weights of its own and of the retain term), and `retain`: null or "none",
            a short name, or {handler, ...hyper-parameters}. `retain_loss_type`, the field's key, is a short name too.
        switches: the keyword arguments that `compat` sets for a loss, by its name; what `method_args` says wins.

    Returns:
        The objective, its own term first.

    Raises:
        UserError: with all faults together: unknown or missing hyper-parameter, a value of the wrong type, a weight that is required, a
            handler that is not a loss.
    """
    faults: list[Fault] = []
    main = import_loss(handler)
    spec = main.spec
    own = {key: value for key, value in method_args.items() if key not in WEIGHT_KEYS}
    kwargs = bind(main, own, switches(spec.name), WEIGHT_KEYS, faults)
    if spec.gamma is None and method_args.get("gamma") is None:
        faults.append(Fault(f"{spec.name} needs a weight", "give trainer.method_args.gamma; a default of 0 would drop a term in silence"))
    gamma = as_number("gamma", method_args.get("gamma", spec.gamma), 0.0 if spec.gamma is None else spec.gamma, faults)
    alpha = as_number("alpha", method_args.get("alpha", spec.alpha), spec.alpha, faults)
    terms = [Term(spec.name, main, gamma, kwargs)]
    retain_handler, retain_args = _retain_choice(method_args, spec.retain, faults)
    if retain_handler is not None:
        retain = import_loss(retain_handler)
        retain_kwargs = bind(retain, retain_args, switches(retain.spec.name), (), faults)
        terms.append(Term(f"retain_{retain.spec.name}", retain, alpha, retain_kwargs))
    elif "alpha" in method_args:
        log.info("alpha=%s weighs a retain term, and %s runs without one here", method_args["alpha"], spec.name)
    if faults:
        raise UserError.of(faults)
    return Objective(terms)


def _retain_choice(method_args: Mapping[str, Any], default: str, faults: list[Fault]) -> tuple[str | None, dict[str, Any]]:
    """The retain term's handler, None for none, and its hyper-parameters."""
    choice: Any = method_args["retain"] if "retain" in method_args else method_args.get("retain_loss_type", default)
    args: dict[str, Any] = {}
    if isinstance(choice, Mapping):
        args = {key: value for key, value in choice.items() if key != "handler"}
        if "handler" not in choice:
            faults.append(
                Fault("trainer.method_args.retain has no handler", f"give one of {', '.join(HANDLERS)}, none, or module:function")
            )
        choice = choice.get("handler")
    if choice is None or str(choice).lower() == "none":
        return None, {}
    if ":" in str(choice):
        return str(choice), args
    if str(choice).lower() not in HANDLERS:
        faults.append(unknown("retain term", str(choice), (*HANDLERS, "none")))
        return None, {}
    return HANDLERS[str(choice).lower()], args
