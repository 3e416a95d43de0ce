"""From a configuration to an objective: which losses, with which hyper-parameters and weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.config.method import COMBINE, KEY, RETAIN, SCHEDULE, bind_method, terms_of
from expunge.core.binding import Bound, Switches, bound_alone
from expunge.core.errors import UserError
from expunge.core.needs import Need
from expunge.lm.labels import Side
from expunge.methods.base import Kind, Loss
from expunge.methods.combine import Combination
from expunge.methods.schedule import Schedule
from expunge.methods.schedule import StepInfo as StepInfo
from expunge.models.outputs import modules_named
from expunge.models.selection import freeze_unreached, train_only

log = logging.getLogger(__name__)


@dataclass
class Term:
    """One summand of an objective.

    Attributes:
        name: its name in the logs, unique in its objective.
        loss: the function of quantities.
        weight: what its mean is multiplied by; may change from step to step.
        kwargs: hyper-parameters, bound.
        is_retain: whether it is the retain term.
        watched: whether it is computed even at weight 0, because its value is needed.
    """

    name: str
    loss: Loss
    weight: float
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_retain: bool = False
    watched: bool = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """Quantities it reads, in the order of the loss's positional parameters."""
        return self.loss.spec.needs

    @property
    def kind(self) -> Kind:
        """What its mean is over."""
        return self.loss.spec.kind

    @property
    def side(self) -> str:
        """The side whose label tokens or sequences its mean is over."""
        return self.loss.spec.side

    @property
    def skip(self) -> int:
        """How many leading labels of each row do not count."""
        return int(self.kwargs[self.loss.spec.skip]) if self.loss.spec.skip else 0

    @property
    def places(self) -> str:
        """The positions it looks at: "labels", or another of `expunge.training.places`."""
        return str(self.kwargs[self.loss.spec.places]) if self.loss.spec.places else "labels"

    def __call__(self, quantities: Mapping[str, Any]) -> Tensor:
        """The loss of quantities by name, [B], [B, N] or [], neither reduced nor weighted."""
        return self.loss(*(quantities[need.name] for need in self.needs), **self.kwargs)

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """The names, in the logs, of what is logged beside its value."""
        return tuple(f"{self.name}_{name}" for name in self.loss.spec.diagnostics)

    def diagnosed(self, quantities: Mapping[str, Any]) -> dict[str, Tensor]:
        """Its diagnostics by their names in the logs, each [B], without gradient."""
        given = [quantities[need.name] for need in self.needs]
        with torch.no_grad():
            values = [function(*given, **self.kwargs) for function in self.loss.spec.diagnostics.values()]
        return dict(zip(self.diagnostics, values, strict=True))


class Objective:
    """A weighted sum of terms. A method with a state overrides the methods from `prepare` on.

    Args:
        terms: the summands; those of weight 0 are dropped, never computed.
        schedule: what the weights are multiplied by, from step to step; None = they stay.
        combination: how the gradients of the method's own terms and of the retain term are put together; None
            = added.

    Raises:
        UserError: nothing is left to optimise.
    """

    def __init__(
        self, terms: Sequence[Term], schedule: Schedule | None = None, combination: Combination | None = None
    ) -> None:
        self.terms = tuple(term for term in terms if term.weight != 0)
        if not self.terms:
            raise UserError(
                "every term of the objective has weight 0: nothing to optimise",
                "give trainer.method_args.gamma or alpha another value",
            )
        self.schedule, self.combination = schedule, combination
        self._weights = [term.weight for term in self.terms]

    @property
    def needs(self) -> tuple[Need, ...]:
        """Every quantity that some term reads, each once."""
        return tuple(dict.fromkeys(need for term in self.terms for need in term.needs))

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of the data that are read, each once."""
        return tuple(dict.fromkeys(need.data_side for need in self.needs if need.side))

    @property
    def elsewhere(self) -> dict[str, tuple[str, ...]]:
        """The sides of the data that terms look at other places of than the labels, by these places."""
        found: dict[str, dict[str, None]] = {}
        for term in self.terms:
            if term.places != "labels":
                sides = found.setdefault(term.places, {})
                sides |= {need.data_side: None for need in term.needs if need.side}
        return {places: tuple(sides) for places, sides in found.items()}

    @property
    def reference_needs(self) -> tuple[Need, ...]:
        """The quantities that come from the model before unlearning."""
        return tuple(need for need in self.needs if need.from_reference)

    @property
    def hidden(self) -> str | tuple[str, ...] | None:
        """The regular expression (a tuple of several) of the modules whose output is read as `hidden_BTD` (`hidden_LBTD`)."""
        for term in self.terms:
            if any(need.hidden for need in term.needs):
                pattern = term.kwargs["module_regex"]
                return pattern if isinstance(pattern, str) else tuple(pattern)
        return None

    def prepare(self, model: nn.Module, seed: int, tokenizer: Any = None) -> None:
        """Once before the optimizer is built: look for the modules that are read, and freeze the parameters that are not to move.

        Where hidden states alone are read, the parameters of later layers cannot move; they are frozen as
        well.

        Args:
            model: the model to train, not wrapped yet.
            seed: of the run; whatever is drawn comes from generators of it.
            tokenizer: of the model, for methods that write text of their own.

        Raises:
            UserError: a pattern that matches no module or parameter, or several modules; it lists the near
                ones.
        """
        if self.hidden is not None:
            modules_named(model, self.hidden)
        for term in self.terms:
            if (patterns := term.kwargs.get("trainable_params_regex")) is not None:
                train_only(model, patterns)
        if self.hidden is not None and all(
            need.hidden for need in self.needs if need.from_pass and not need.reference
        ):
            freeze_unreached(model, self.hidden)

    def given(self, device: torch.device) -> dict[str, Tensor]:
        """The quantities that the objective itself keeps, such as `control_D`, on a device."""
        return {}

    def derived(self, sides: Mapping[str, Side]) -> dict[str, Side]:
        """Further sides of a batch, made of those that were collated; see `core.needs.SIDES`."""
        return {}

    def begin_step(self, info: StepInfo) -> None:
        """Called before each optimizer step: sets the terms' weights by the schedule."""
        if self.schedule is not None:
            factors = self.schedule(info)
            for term, weight in zip(self.terms, self._weights, strict=True):
                term.weight = weight * (factors.retain if term.is_retain else factors.own)

    @property
    def listens(self) -> bool:
        """Whether `on_micro_batch` is to be called, which makes each micro-batch wait for its values."""
        return False

    def on_micro_batch(self, values: Mapping[str, float]) -> None:
        """Called after each micro-batch, where `listens`, with each term's mean over it on this rank."""

    def on_step(self, values: Mapping[str, float]) -> None:
        """Called after each optimizer step with every term's unweighted mean over the whole step, all ranks included."""

    def report(self) -> dict[str, float]:
        """What a log record tells beside the terms' values: the weights, where they move."""
        return (
            {f"weight_{term.name}": term.weight for term in self.terms} if self.schedule is not None else {}
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep, tensors and JSON values."""
        return self.combination.state_dict() if self.combination is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            UserError: the state belongs to another objective.
        """
        if self.combination is not None:
            self.combination.load_state_dict(state)
        elif state:
            raise UserError(
                f"the checkpoint holds a state ({', '.join(sorted(state))}) that this objective does not have",
                "resume the same method",
            )


def build_objective(
    handler: str, method_args: Mapping[str, Any], switches: Switches = lambda _: {}
) -> Objective:
    """Bind a method and build its objective.

    Args:
        handler: the method's loss as "module:function".
        method_args: see `config.method.bind_method`.
        switches: the keyword arguments that `compat` sets for a loss, by its name; what `method_args` states
            wins.

    Raises:
        UserError: all faults together.
    """
    return objective_of(bound_alone(bind_method, handler, method_args, switches))


def objective_of(bound: Mapping[str, Bound]) -> Objective:
    """The objective of a method that was bound, its own terms first.

    Args:
        bound: of `config.method.bind_method`: loss, further terms, retain term, schedule, combination.

    Raises:
        UserError: a handler cannot be imported, or every weight is 0.
    """
    terms: list[Term] = []
    for chosen, weight, is_retain in terms_of(bound):
        found: Loss = chosen.load()
        name = f"retain_{found.spec.name}" if is_retain else found.spec.name
        terms.append(Term(name, found, weight, {**found.spec.hyper, **chosen.kwargs}, is_retain=is_retain))
    if RETAIN not in bound and "alpha" in bound[KEY].given:
        log.info(
            "alpha=%s weighs a retain term, and %s runs without one here",
            bound[KEY].options["alpha"],
            terms[0].name,
        )
    schedule = partial(bound[SCHEDULE].load(), **bound[SCHEDULE].kwargs) if SCHEDULE in bound else None
    combination = bound[COMBINE].load()(**bound[COMBINE].kwargs) if COMBINE in bound else None
    return (terms[0].loss.spec.objective or Objective)(terms, schedule, combination)
