"""The sums and means of a training step: every term is averaged over the whole step, however it is split.

Let C be the number of label tokens (kind "token") or sequences (kind "sequence") of a term in all
micro-batches of all ranks of one optimizer step. A micro-batch contributes `weight * sum(loss) / C`; the sum
of all contributions is the mean over the step. Data parallelism averages gradients over ranks, so each rank
multiplies its share by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from expunge.models.parallel import Parallel
from expunge.models.reference import Reference
from expunge.training.combining import GradientApart, StepGradients
from expunge.training.order import MicroBatch
from expunge.training.places import Place, count_labels
from expunge.training.quantities import build_quantities

Normalise = Literal["step", "micro_batch"]
Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class StepCounts:
    """The counts of one optimizer step, over all micro-batches and ranks.

    Attributes:
        tokens: label tokens by side.
        sequences: sequences by side.
        batches: micro-batches with a counted row.
        placed: label tokens by place, for terms that do not read simply all labels of their side.
        local: micro-batches of this rank, including those without a counted row.
    """

    tokens: Mapping[str, int]
    sequences: Mapping[str, int]
    batches: int
    placed: Mapping[Place, int] = field(default_factory=dict)
    local: int = field(default=0, compare=False)

    def of(self, term: Term) -> int:
        """The divisor of a term's mean: label tokens, sequences or, for kind "model", micro-batches."""
        if term.kind == "model":
            return self.batches
        if term.kind == "sequence":
            return self.sequences[term.side]
        place = place_of(term)
        return self.tokens[term.side] if place[1:] == ("labels", 0) else self.placed[place]


def place_of(term: Term) -> Place:
    """The positions over which a token term is averaged."""
    return (term.side, term.places, term.skip)


def count_step(
    batches: Sequence[MicroBatch],
    sides: Sequence[str],
    all_sum: Callable[[Tensor], Tensor],
    places: Sequence[Place] = (),
) -> StepCounts:
    """Count the micro-batches of one step.

    Args:
        batches: this rank's micro-batches, in order.
        sides: the sides to count, in the same order on all ranks.
        all_sum: sums an int64 vector over the ranks.
        places: other places to count, in the same order on all ranks, see `training.places.special`.

    Returns:
        Counts over all ranks. A label at position 0 does not count, because nothing predicts it.
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
    """The sides of a micro-batch with their labels at `places`."""
    return batch["sides"] if places == "labels" else batch["elsewhere"][places]


def independent_groups(terms: Sequence[Term]) -> list[list[Term]]:
    """Group terms so that no two groups share a forward pass: each can be back-propagated separately."""
    return [[terms[number] for number in group] for group in independent([term.needs for term in terms])]


class Driver:
    """Runs the forward and backward passes of one micro-batch, with all masks, sums and means.

    Args:
        objective: the terms, in the order of logging.
        reference: the model before unlearning, if a term reads it.
        parallel: the processes whose gradients are averaged; None = this one alone.
        normalise: "step" = means over the whole step; "micro_batch" = the field's mean of micro-batch means,
            whose gradient depends on how a step is split (compat switch `driver.normalise`).
        sequential_terms: back-propagate terms that share no forward pass one after the other, so that memory
            holds the activations of one side at a time. The gradient is the same up to the order of
            floating-point additions.

    Attributes:
        names: what `backward` returns values of, in its order: the terms, then their diagnostics.
        apart: keeps the gradient of one side's terms apart, see `keep_apart`; None = off.
    """

    def __init__(
        self,
        objective: Objective,
        reference: Reference | None = None,
        *,
        parallel: Parallel | None = None,
        normalise: Normalise = "step",
        sequential_terms: bool = True,
    ) -> None:
        if normalise not in ("step", "micro_batch"):
            message = f"unknown value of driver.normalise: {normalise!r}"
            raise UserError(message, "choose 'step' or 'micro_batch'")
        self.objective, self.reference = objective, reference
        self.parallel = Parallel.alone() if parallel is None else parallel
        self.normalise, self.sequential_terms = normalise, sequential_terms
        terms, combination = objective.terms, objective.combination
        self.names = (*(term.name for term in terms), *(name for term in terms for name in term.diagnostics))
        self.gradients = None if combination is None else StepGradients(combination, self.parallel)
        self.apart: GradientApart | None = None

    def backward(
        self,
        model: nn.Module,
        batch: MicroBatch,
        counts: StepCounts,
        backward: Callable[[Tensor], None],
        autocast: Context = nullcontext,
        no_sync: Context = nullcontext,
    ) -> tuple[Tensor, Tensor]:
        """Forward and backward of one micro-batch.

        Args:
            model: the model in training, wrapped.
            batch: the micro-batch, on the device.
            counts: counts of the whole step.
            backward: back-propagates a scalar.
            autocast: context for the reference's forward passes.
            no_sync: context in which ranks do not exchange gradients; all groups of terms except the last
                run in it.

        Returns:
            Two tensors. The first is a scalar: this micro-batch's share of the step's loss, times the number
            of ranks; its mean over ranks is the loss. The second has this micro-batch's share of each of
            `names`; its sum over ranks and micro-batches is the mean over the step of the unweighted terms
            and the diagnostics. It is NaN for a term of weight 0, which is not computed.
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
                        # The only call of a loss. It returns one value per sequence or label, not masked yet.
                        value = term.loss(*(quantities[need.name] for need in term.needs), **term.kwargs)
                        scale = self._scale(term, batch, counts)
                        shares[term.name] = scale * summed(term, value, quantities, batch["counted_B"])
                        values |= _diagnosed(term, quantities, batch["counted_B"], counts)
                weighted = [term.weight * self.parallel.dp_size * shares[term.name] for term in group]
                loss = torch.stack(weighted).sum()
                # The graph keeps what the backward pass needs; the rest is freed.
                del quantities, value, weighted
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
            self._report_means(terms, values, batch, counts)
        absent = total.new_full((), torch.nan)
        return total, torch.stack([values.get(name, absent) for name in self.names])

    @property
    def logged(self) -> set[str]:
        """Those of `names` whose term has a weight now; schedules and objectives may change weights."""
        terms = [term for term in self.objective.terms if term.weight != 0]
        return {name for term in terms for name in (term.name, *term.diagnostics)}

    def _groups(self, active: list[Term]) -> list[list[Term]]:
        """The terms that are back-propagated together."""
        first: list[list[Term]] = []
        if self.gradients is not None:
            first = [[term for term in active if term.is_retain is retain] for retain in (False, True)]
            active = []
        elif (apart := self.apart) is not None:
            first = [[term for term in active if term.side == apart.side]]
            active = [term for term in active if term.side != apart.side]
        groups = independent_groups(active) if self.sequential_terms else [active]
        # Ranks exchange gradients in the last backward pass. DDP prepares it in the forward pass before, so a
        # term without a forward pass comes first.
        groups.sort(key=lambda group: any(term.side for term in group))
        return [group for group in (*first, *groups) if group]

    def keep_apart(self, side: str | None) -> bool:
        """Keep the gradient of the terms averaged over a side out of `.grad`, in `apart`; None = of no side.

        Returns:
            Whether it is possible. It is not if gradients are combined, if there are no such terms, or if no
            other term takes a forward pass, which DDP needs to exchange gradients.
        """
        others = [term for term in self.objective.terms if term.side != side]
        both = len(others) < len(self.objective.terms) and any(term.side for term in others)
        possible = side and both and self.gradients is None and self.sequential_terms
        self.apart = GradientApart(side, self.parallel) if side and possible else None
        return self.apart is not None

    def _quantities(
        self, members: list[Term], model: nn.Module, batch: MicroBatch, autocast: Context
    ) -> dict[str, Any]:
        """The quantities, by name, that terms with the same places read."""
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
        """The factor of a sum over the micro-batch, without the number of ranks."""
        if not any(batch["counted"]):
            return 0.0
        if self.normalise == "step" or term.kind == "model":
            return 1.0 / max(1, counts.of(term))
        return 1.0 / (max(1, _local(term, batch)) * max(1, counts.batches))

    def _report_means(
        self, terms: list[Term], values: Mapping[str, Tensor], batch: MicroBatch, counts: StepCounts
    ) -> None:
        """Report to the objective each term's mean over this micro-batch alone."""
        if any(batch["counted"]):
            means = {}
            for term in [term for term in terms if term.name in values]:
                divisor = self._scale(term, batch, counts) * max(1, _local(term, batch))
                means[term.name] = float(values[term.name]) / divisor
            self.objective.on_micro_batch(means)


def _local(term: Term, batch: MicroBatch) -> int:
    """What the term averages over, counted in one micro-batch."""
    if term.kind == "model":
        return 1
    if term.kind == "sequence":
        return sum(batch["counted"])
    return count_labels(sides_at(batch, term.places)[term.side], term.skip)


def _by_places(group: list[Term]) -> list[list[Term]]:
    """The terms of a group, split by the places that they look at."""
    return [
        [term for term in group if term.places == places]
        for places in dict.fromkeys(term.places for term in group)
    ]


def _diagnosed(
    term: Term, quantities: Mapping[str, Any], counted_B: Tensor, counts: StepCounts
) -> dict[str, Tensor]:
    """Diagnostics of a term: this micro-batch's share of their means over the sequences of the step."""
    over = max(1, counts.sequences[term.side]) if term.side else 1
    return {
        name: masked_sum(as_float32(value_B), counted_B) / over
        for name, value_B in term.diagnosed(quantities).items()
    }


def summed(
    term: Term, value: Tensor, quantities: Mapping[str, Any], counted_B: Tensor | None = None
) -> Tensor:
    """Sum of a loss over the sequences or label tokens of a micro-batch, as a float32 scalar.

    Args:
        term: the term of the loss.
        value: what the loss returned: [B] (kind sequence), [B, N] (token) or [] (model: returned unchanged).
        quantities: by name, with the masks.
        counted_B: [B] bool, the sequences that count; None = all. Labels of the others are masked already.

    Raises:
        UserError: the loss returned another shape than its kind requires.
    """
    value = as_float32(value)
    mask_BN = quantities[f"{term.side}_mask_BN"] if term.side else value.new_ones(())
    expected = mask_BN.shape[:1] if term.kind == "sequence" else mask_BN.shape
    if value.shape != expected:
        raise UserError(
            f"the loss of {term.name!r} is of kind {term.kind!r}, but it returned {list(value.shape)}"
            f" instead of {list(expected)}",
            "return a value per sequence [B] (kind sequence) or label [B, N] (kind token), without a mean",
        )
    if term.kind == "model":
        return value
    if term.kind == "sequence":
        return value.sum() if counted_B is None else masked_sum(value, counted_B)
    return masked_sum(value, without_first(mask_BN, term.skip) if term.skip else mask_BN).sum()
