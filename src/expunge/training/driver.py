"""The sums and means of a training step: every term is averaged over the whole step, however the step is cut up.

With C the number of label tokens (kind "token") or sequences (kind "sequence") that a term counts in all
micro-batches of all ranks of one optimizer step, a micro-batch contributes `weight * sum(loss) / C`; the
contributions add up to the mean over the step. Data parallelism averages gradients over ranks, so each rank
multiplies its share by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.core.needs import independent
from expunge.lm.labels import Batch, without_first
from expunge.lm.logprobs import as_float32, masked_sum
from expunge.methods.objective import Objective, Term
from expunge.models.reference import Reference
from expunge.training.combining import GradientApart, StepGradients
from expunge.training.order import MicroBatch
from expunge.training.places import Place, count_labels
from expunge.training.quantities import build_quantities

Normalise = Literal["step", "micro_batch"]


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step counts, over all its micro-batches and ranks.

    Attributes:
        tokens: label tokens by side.
        sequences: sequences by side.
        batches: micro-batches that count.
        placed: label tokens where a term does not simply look at all labels of its side.
        local: micro-batches of this rank, those that do not count included.
    """

    tokens: Mapping[str, int]
    sequences: Mapping[str, int]
    batches: int
    placed: Mapping[Place, int] = field(default_factory=dict)
    local: int = field(default=0, compare=False)

    def of(self, term: Term) -> int:
        """What the mean of a term is over: label tokens, sequences, or, of a loss of the model alone, micro-batches."""
        if term.kind == "model":
            return self.batches
        if term.kind == "sequence":
            return self.sequences[term.side]
        return (
            self.tokens[term.side]
            if (term.places, term.skip) == ("labels", 0)
            else self.placed[place_of(term)]
        )


def place_of(term: Term) -> Place:
    """What a term's token mean is over."""
    return (term.side, term.places, term.skip)


def count_step(
    batches: Sequence[MicroBatch],
    sides: Sequence[str],
    all_sum: Callable[[Tensor], Tensor],
    places: Sequence[Place] = (),
) -> StepCounts:
    """Count the micro-batches of one step.

    Args:
        batches: this rank's micro-batches, from first to last.
        sides: the sides to count, in an order all ranks share.
        all_sum: sums an int64 vector over the ranks.
        places: what else to count, in an order all ranks share, see `training.places.special`.

    Returns:
        Counts over all ranks. A label at position 0 does not count, since nothing predicts it.
    """
    plain: list[Place] = [(side, "labels", 0) for side in sides]
    local = torch.zeros(2 * len(sides) + len(places) + 1, dtype=torch.int64)
    for batch in batches:
        rows = sum(batch["counted"])
        labels = [count_labels(sides_at(batch, where)[side], skip) for side, where, skip in (*plain, *places)]
        local += torch.tensor([*labels, *[rows] * len(sides), rows > 0])
    total: list[int] = all_sum(local).tolist()
    first, second = len(sides), len(sides) + len(places)
    tokens, placed = dict(zip(sides, total, strict=False)), dict(zip(places, total[first:], strict=False))
    return StepCounts(tokens, dict(zip(sides, total[second:], strict=False)), total[-1], placed, len(batches))


def sides_at(batch: MicroBatch, places: str) -> Batch:
    """The sides of a micro-batch, whose labels are at some places."""
    return batch["sides"] if places == "labels" else batch["elsewhere"][places]


def independent_groups(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms grouped so that no two groups read the same side of the model in training: each group can be back-propagated on its own."""
    return [[terms[number] for number in group] for group in independent([term.needs for term in terms])]


class Driver:
    """Runs forward and backward of one micro-batch and keeps the books.

    Args:
        objective: the terms, in the order in which they are logged.
        reference: the model before unlearning, where a term reads it.
        world_size: number of ranks whose gradients are averaged.
        normalise: "step" = means over the whole step; "micro_batch" = the field's mean of micro-batch means,
            whose gradient depends on how a step is cut up (compat switch `driver.normalise`).
        sequential_terms: back-propagate terms that share no forward pass one after the other, so that only
            one side's activations are alive at a time. Same gradient up to the order of floating-point
            additions.
    """

    def __init__(
        self,
        objective: Objective,
        reference: Reference | None = None,
        *,
        world_size: int = 1,
        normalise: Normalise = "step",
        sequential_terms: bool = True,
    ) -> None:
        if normalise not in ("step", "micro_batch"):
            raise UserError(f"driver.normalise is {normalise!r}", "choose 'step' or 'micro_batch'")
        self.objective, self.reference, self.world_size = objective, reference, world_size
        self.normalise, self.sequential_terms = normalise, sequential_terms
        self.gradients = (
            StepGradients(objective.combination, world_size) if objective.combination is not None else None
        )
        self.apart: GradientApart | None = None

    def backward(
        self,
        model: nn.Module,
        batch: MicroBatch,
        counts: StepCounts,
        backward: Callable[[Tensor], None],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of one micro-batch.

        Args:
            model: the model in training, as wrapped.
            batch: the micro-batch, on the device.
            counts: of the whole step.
            backward: back-propagates a scalar.
            autocast: context for the reference's forward passes.
            no_sync: context in which ranks do not exchange gradients; every group of terms but the last runs
                in it.

        Returns:
            This micro-batch's share of the step's loss times the number of ranks (a scalar, whose mean over
            ranks is the loss), and the shares of what `names` lists, whose sum over ranks and micro-batches
            is the mean of each over the step: the terms' unweighted values, then diagnostics; NaN for those
            of a term of weight 0, which is not computed.
        """
        terms = list(self.objective.terms)
        groups = self._groups([term for term in terms if term.weight != 0 or term.watched])
        values: dict[str, Tensor] = {}
        total = batch["counted_B"].new_zeros((), dtype=torch.float32)
        for number, group in enumerate(groups):
            with nullcontext() if number == len(groups) - 1 and self.gradients is None else no_sync():
                shares: dict[str, Tensor] = {}
                for members in _by_places(group):
                    quantities = self._quantities(members, model, batch, autocast)
                    for term in members:
                        # The one call of a loss; it returns a value a sequence or a label, and nothing is
                        # masked yet.
                        value = term.loss(*(quantities[need.name] for need in term.needs), **term.kwargs)
                        scale = self._scale(term, batch, counts)
                        shares[term.name] = scale * summed(term, value, quantities, batch["counted_B"])
                        values |= _diagnosed(term, quantities, batch["counted_B"], counts)
                loss = torch.stack(
                    [term.weight * self.world_size * shares[term.name] for term in group]
                ).sum()
                # What the backward pass needs of these is in the graph.
                del quantities, value
                values |= {name: share.detach() for name, share in shares.items()}
                if self.gradients is not None:
                    self.gradients.backward(model, backward, loss, retain=group[0].is_retain)
                elif self.apart is not None and group[0].side == self.apart.side:
                    self.apart.backward(model, backward, loss)
                else:
                    backward(loss)
                total = total + loss.detach()
                del loss, shares
        if self.gradients is not None:
            self.gradients.micro_batch_done(model, counts.local)
        if self.objective.listens:
            self._tell(terms, values, batch, counts)
        absent = total.new_full((), torch.nan)
        return total, torch.stack([values.get(name, absent) for name in self.names])

    @property
    def names(self) -> tuple[str, ...]:
        """What `backward` gives values of, in its order: the terms, then their diagnostics."""
        terms = self.objective.terms
        return (*(term.name for term in terms), *(name for term in terms for name in term.diagnostics))

    @property
    def logged(self) -> frozenset[str]:
        """Those of `names` that belong to a term with a weight."""
        terms = [term for term in self.objective.terms if term.weight != 0]
        return frozenset(name for term in terms for name in (term.name, *term.diagnostics))

    def _groups(self, active: list[Term]) -> list[list[Term]]:
        """The terms that are back-propagated together."""
        if self.gradients is not None:
            kept = [
                [term for term in active if not term.is_retain],
                [term for term in active if term.is_retain],
            ]
            return [part for part in kept if part]
        if self.apart is not None:
            own, others = _parts(active, self.apart.side)
            return [*([own] if own else []), *self._in_turn(others)]
        return self._in_turn(active)

    def keep_apart(self, side: str | None) -> bool:
        """Keep the gradient of the terms averaged over a side out of `.grad`, see `apart`; None = of no side.

        Returns:
            Whether it is done. It is not where gradients are combined, where there are no such terms or no
            others, or where the others take no forward pass, which DDP needs to exchange their gradients.
        """
        self.apart = None
        own, others = _parts(self.objective.terms, side)
        possible = own and any(term.side for term in others) and self.gradients is None
        if side and possible and self.sequential_terms:
            self.apart = GradientApart(side, self.world_size)
        return self.apart is not None

    def _in_turn(self, active: list[Term]) -> list[list[Term]]:
        groups = independent_groups(active) if self.sequential_terms else [active]
        # Ranks exchange gradients in the last backward pass, which DDP arms in the forward pass before it: a
        # term without one comes first.
        return sorted(groups, key=lambda group: any(term.side for term in group))

    def _quantities(
        self,
        members: list[Term],
        model: nn.Module,
        batch: MicroBatch,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> dict[str, Any]:
        """What terms that look at the same places read, by name."""
        own: dict[str, Any] = dict(self.objective.given(batch["counted_B"].device))
        if any(term.kind == "model" for term in members):
            own["parameters"] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        places = members[0].places
        sides = sides_at(batch, places)
        if places == "labels":
            sides = {**sides, **self.objective.derived(sides)}
        needs = [need for term in members for need in term.needs]
        return build_quantities(
            needs, model, sides, self.reference, autocast, hidden=self.objective.hidden, own=own
        )

    def _scale(self, term: Term, batch: MicroBatch, counts: StepCounts) -> float:
        """What a sum over the micro-batch is multiplied by, the number of ranks aside."""
        if not any(batch["counted"]):
            return 0.0
        if self.normalise == "step" or term.kind == "model":
            return 1.0 / max(1, counts.of(term))
        return 1.0 / (max(1, _local(term, batch)) * max(1, counts.batches))

    def _tell(
        self, terms: list[Term], values: Mapping[str, Tensor], batch: MicroBatch, counts: StepCounts
    ) -> None:
        """Tell the objective each term's mean over this micro-batch alone."""
        if any(batch["counted"]):
            scales = {
                term.name: self._scale(term, batch, counts) * max(1, _local(term, batch)) for term in terms
            }
            self.objective.on_micro_batch(
                {name: float(values[name]) / scale for name, scale in scales.items() if name in values}
            )


def _parts(terms: Iterable[Term], side: str | None) -> tuple[list[Term], list[Term]]:
    """The terms averaged over a side, and the others."""
    terms = list(terms)
    return [term for term in terms if term.side == side], [term for term in terms if term.side != side]


def _local(term: Term, batch: MicroBatch) -> int:
    """What a term counts in a micro-batch."""
    if term.kind == "model":
        return 1
    if term.kind == "sequence":
        return sum(batch["counted"])
    return count_labels(sides_at(batch, term.places)[term.side], term.skip)


def _by_places(group: list[Term]) -> list[list[Term]]:
    """A group's terms, those that look at the same places together."""
    return [
        [term for term in group if term.places == places]
        for places in dict.fromkeys(term.places for term in group)
    ]


def _diagnosed(
    term: Term, quantities: Mapping[str, Any], counted_B: Tensor, counts: StepCounts
) -> dict[str, Tensor]:
    """This micro-batch's share of the mean over the step's sequences of each of a term's diagnostics."""
    over = max(1, counts.sequences[term.side]) if term.side else 1
    return {
        name: masked_sum(as_float32(value_B), counted_B) / over
        for name, value_B in term.diagnosed(quantities).items()
    }


def summed(
    term: Term, value: Tensor, quantities: Mapping[str, Any], counted_B: Tensor | None = None
) -> Tensor:
    """Sum of a loss over the sequences or label tokens of a micro-batch, or the loss of the model alone; a float32 scalar.

    Args:
        term: whose loss it is.
        value: what the loss returned, [B], [B, N] or [].
        quantities: by name; what is masked there is left out.
        counted_B: [B] bool, the sequences that count; None = all. Labels of the others are masked already.

    Raises:
        UserError: the loss returned another shape than its kind says.
    """
    value = as_float32(value)
    mask_BN = quantities[f"{term.side}_mask_BN"] if term.side else value.new_ones(())
    expected = mask_BN.shape[:1] if term.kind == "sequence" else mask_BN.shape
    if value.shape != expected:
        raise UserError(
            f"the loss of {term.name!r} is of kind {term.kind!r} and returned {list(value.shape)} instead of {list(expected)}",
            "return one value a sequence [B] or a label [B, N], as the kind says, without a mean over the batch",
        )
    if term.kind == "model":
        return value
    if term.kind == "sequence":
        return value.sum() if counted_B is None else masked_sum(value, counted_B)
    return masked_sum(value, without_first(mask_BN, term.skip) if term.skip else mask_BN).sum()
