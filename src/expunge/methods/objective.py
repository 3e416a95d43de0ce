"""The objective that a configuration describes: which losses, with which hyper-parameters and weights."""

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
        name: its name in the logs, unique within the objective.
        loss: the function of quantities.
        weight: factor of its mean; may change from step to step.
        kwargs: bound hyper-parameters.
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
        """What it is averaged over."""
        return self.loss.spec.kind

    @property
    def side(self) -> str:
        """The side whose label tokens or sequences it is averaged over."""
        return self.loss.spec.side

    @property
    def skip(self) -> int:
        """How many leading labels of each row do not count."""
        return int(self.kwargs[self.loss.spec.skip]) if self.loss.spec.skip else 0

    @property
    def places(self) -> str:
        """The positions it reads: "labels", or another choice of `expunge.training.places`."""
        return str(self.kwargs[self.loss.spec.places]) if self.loss.spec.places else "labels"

    def __call__(self, quantities: Mapping[str, Any]) -> Tensor:
        """The loss from quantities by name: [B], [B, N] or [], neither reduced nor weighted."""
        return self.loss(*(quantities[need.name] for need in self.needs), **self.kwargs)

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """The log names of the values that are logged beside the loss."""
        return tuple(f"{self.name}_{name}" for name in self.loss.spec.diagnostics)

    def diagnosed(self, quantities: Mapping[str, Any]) -> dict[str, Tensor]:
        """Its diagnostics by log name, each [B], without gradient."""
        given = [quantities[need.name] for need in self.needs]
        with torch.no_grad():
            values = [function(*given, **self.kwargs) for function in self.loss.spec.diagnostics.values()]
        return dict(zip(self.diagnostics, values, strict=True))


class Objective:
    """A weighted sum of terms. A method with a state overrides the methods from `prepare` on.

    Args:
        terms: the summands; a term of weight 0 is dropped and never computed.
        schedule: gives the factors of the weights at each step; None = the weights stay constant.
        combination: how the gradients of the method's own terms and of the retain term are combined; None =
            they are added.

    Raises:
        UserError: nothing is left to optimise.
    """

    def __init__(
        self, terms: Sequence[Term], schedule: Schedule | None = None, combination: Combination | None = None
    ) -> None:
        self.terms = tuple(term for term in terms if term.weight != 0)
        if not self.terms:
            raise UserError(
                "every term of the objective has weight 0, so there is nothing to optimise",
                "set trainer.method_args.gamma or trainer.method_args.alpha to a value other than 0",
            )
        self.schedule, self.combination = schedule, combination
        self._weights = [term.weight for term in self.terms]

    @property
    def needs(self) -> tuple[Need, ...]:
        """The quantities that the terms read, each once."""
        return tuple(dict.fromkeys(need for term in self.terms for need in term.needs))

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides of the data that the terms read, each once."""
        return tuple(dict.fromkeys(need.data_side for need in self.needs if need.side))

    @property
    def elsewhere(self) -> dict[str, tuple[str, ...]]:
        """For each choice of positions other than the labels: the sides of the data that are read there."""
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
        """The pattern of the module read as `hidden_BTD`, or the patterns of those read as `hidden_LBTD`."""
        for term in self.terms:
            if any(need.hidden for need in term.needs):
                pattern = term.kwargs["module_regex"]
                return pattern if isinstance(pattern, str) else tuple(pattern)
        return None

    def prepare(self, model: nn.Module, seed: int, tokenizer: Any = None) -> None:
        """Find the modules to read and freeze the parameters that must not move.

        Called once, before the optimizer is built. If the objective reads only hidden states, the parameters
        of later layers get no gradient; they are frozen as well.

        Args:
            model: the model to train, not wrapped yet.
            seed: of the run; the generators of all random draws are derived from it.
            tokenizer: of the model, for methods that write text of their own.

        Raises:
            UserError: a pattern matches no module or parameter, or several modules; the message lists similar
                names.
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
        """The quantities that the objective keeps, such as `control_D`, on a device."""
        return {}

    def derived(self, sides: Mapping[str, Side]) -> dict[str, Side]:
        """Further sides of a batch, made from the collated ones; see `core.needs.SIDES`."""
        return {}

    def begin_step(self, info: StepInfo) -> None:
        """Set the terms' weights by the schedule; called before each optimizer step."""
        if self.schedule is not None:
            factors = self.schedule(info)
            for term, weight in zip(self.terms, self._weights, strict=True):
                term.weight = weight * (factors.retain if term.is_retain else factors.own)

    @property
    def listens(self) -> bool:
        """Whether `on_micro_batch` is called; each micro-batch then waits until its values are computed."""
        return False

    def on_micro_batch(self, values: Mapping[str, float]) -> None:
        """Called after each micro-batch if `listens`, with each term's mean over it on this rank."""

    def on_step(self, values: Mapping[str, float]) -> None:
        """Called after each optimizer step, with each term's unweighted mean over the step on all ranks."""

    def report(self) -> dict[str, float]:
        """What a log record holds besides the terms' values: the weights, if a schedule changes them."""
        return (
            {f"weight_{term.name}": term.weight for term in self.terms} if self.schedule is not None else {}
        )

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: tensors and JSON values."""
        return self.combination.state_dict() if self.combination is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            UserError: the state belongs to another objective.
        """
        if self.combination is not None:
            self.combination.load_state_dict(state)
        elif state:
            raise UserError(
                f"the checkpoint holds a state ({', '.join(sorted(state))}) that this method does not have",
                "resume with the method (trainer=...) that wrote the checkpoint",
            )


def build_objective(
    handler: str, method_args: Mapping[str, Any], switches: Switches = lambda _: {}
) -> Objective:
    """Bind a method and build its objective; `switches` are what `compat` sets for a loss, by its name."""
    return objective_of(bound_alone(bind_method, handler, method_args, switches))


def objective_of(bound: Mapping[str, Bound]) -> Objective:
    """The objective of what `config.method.bind_method` bound; its own terms come first."""
    terms: list[Term] = []
    for chosen, weight, is_retain in terms_of(bound):
        found: Loss = chosen.load()
        name = f"retain_{found.spec.name}" if is_retain else found.spec.name
        terms.append(Term(name, found, weight, {**found.spec.hyper, **chosen.kwargs}, is_retain=is_retain))
    if RETAIN not in bound and "alpha" in bound[KEY].given:
        log.info(
            "alpha=%s has no effect: it is the weight of the retain term, and %s has no retain term here",
            bound[KEY].options["alpha"],
            terms[0].name,
        )
    schedule = partial(bound[SCHEDULE].load(), **bound[SCHEDULE].kwargs) if SCHEDULE in bound else None
    combination = bound[COMBINE].load()(**bound[COMBINE].kwargs) if COMBINE in bound else None
    return (terms[0].loss.spec.objective or Objective)(terms, schedule, combination)
