"""The sums and means of a training step: every term is averaged over the whole step, however the step is cut up.

With C the number of label tokens (kind "token") or sequences (kind "sequence") that a term counts in all micro-batches of all ranks
of one optimizer step, a micro-batch contributes `weight * sum(loss) / C`; the contributions add up to the mean over the step. Data
parallelism averages gradients over ranks, so each rank multiplies its share by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.lm.logprobs import as_float32, masked_sum
from expunge.methods.objective import Objective, Term
from expunge.training.order import MicroBatch
from expunge.training.quantities import FROM_LOGITS, Reference, build_quantities

Normalise = Literal["step", "micro_batch"]


@dataclass(frozen=True)
class StepCounts:
    """What one optimizer step counts, over all its micro-batches and ranks.

    Attributes:
        tokens: label tokens by side.
        sequences: sequences by side.
        batches: micro-batches that count.
    """

    tokens: Mapping[str, int]
    sequences: Mapping[str, int]
    batches: int


def count_step(batches: Sequence[MicroBatch], sides: Sequence[str], all_sum: Callable[[Tensor], Tensor]) -> StepCounts:
    """Count the micro-batches of one step.

    Args:
        batches: this rank's micro-batches, from first to last.
        sides: the sides to count, in an order all ranks share.
        all_sum: sums an int64 vector over the ranks.

    Returns:
        Counts over all ranks. A label at position 0 does not count, since nothing predicts it.
    """
    local = torch.zeros(2 * len(sides) + 1, dtype=torch.int64)
    for batch in batches:
        if not batch["counted"]:
            continue
        for column, side in enumerate(sides):
            local[column] += batch["sides"][side]["label_mask"][:, 1:].sum().cpu()
            local[len(sides) + column] += batch["sides"][side]["label_mask"].shape[0]
        local[-1] += 1
    total: list[int] = all_sum(local).tolist()
    return StepCounts(dict(zip(sides, total, strict=False)), dict(zip(sides, total[len(sides) :], strict=False)), total[-1])


def independent_groups(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms grouped so that no two groups read the same side of the model in training: each group can be back-propagated on its own."""
    groups: list[tuple[set[str], list[Term]]] = []
    for term in terms:
        sides = {need.side for need in term.needs if not need.reference and need.quantity in FROM_LOGITS}
        members = [term]
        apart: list[tuple[set[str], list[Term]]] = []
        for group in groups:
            if group[0] & sides:
                sides, members = sides | group[0], group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (sides, members)]
    return [members for _, members in groups]


class Driver:
    """Runs forward and backward of one micro-batch and keeps the books.

    Args:
        objective: the terms, in the order in which they are logged.
        reference: the model before unlearning, where a term reads it.
        world_size: number of ranks whose gradients are averaged.
        normalise: "step" = means over the whole step; "micro_batch" = the field's mean of micro-batch means, whose gradient depends on
            how a step is cut up (compat switch `driver.normalise`).
        sequential_terms: back-propagate terms that share no forward pass one after the other, so that only one side's activations are
            alive at a time. Same gradient up to the order of floating-point additions.
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
            no_sync: context in which ranks do not exchange gradients; every group of terms but the last runs in it.

        Returns:
            This micro-batch's share of the step's loss times the number of ranks (a scalar, whose mean over ranks is the loss), and the
            shares of the terms' unweighted values [number of terms], whose sum over ranks and micro-batches is each term's mean; NaN
            for a term of weight 0, which is not computed.
        """
        terms = list(self.objective.terms)
        active = [term for term in terms if term.weight != 0]
        groups = independent_groups(active) if self.sequential_terms else [active]
        values: dict[str, Tensor] = {}
        total = next(iter(batch["sides"].values()))["input_ids"].new_zeros((), dtype=torch.float32)
        for number, group in enumerate(groups):
            with nullcontext() if number == len(groups) - 1 else no_sync():
                needs = [need for term in group for need in term.needs]
                quantities = build_quantities(needs, model, batch["sides"], self.reference, autocast)
                shares = {term.name: self._scale(term, batch, counts) * summed(term, quantities) for term in group}
                del quantities
                loss = torch.stack([term.weight * self.world_size * shares[term.name] for term in group]).sum()
                values |= {name: share.detach() for name, share in shares.items()}
                backward(loss)
                total = total + loss.detach()
                del loss, shares
        absent = total.new_full((), torch.nan)
        return total, torch.stack([values.get(term.name, absent) for term in terms])

    def _scale(self, term: Term, batch: MicroBatch, counts: StepCounts) -> float:
        """What a sum over the micro-batch is multiplied by, the number of ranks aside."""
        if not batch["counted"]:
            return 0.0
        side = term.side
        if self.normalise == "step":
            return 1.0 / max(1, (counts.tokens if term.kind == "token" else counts.sequences)[side])
        mask_BT = batch["sides"][side]["label_mask"]
        local = int(mask_BT[:, 1:].sum()) if term.kind == "token" else mask_BT.shape[0]
        return 1.0 / (max(1, local) * max(1, counts.batches))


def summed(term: Term, quantities: Mapping[str, Tensor]) -> Tensor:
    """Sum of a term's loss over the sequences (kind "sequence") or label tokens (kind "token") of a micro-batch, a float32 scalar.

    Raises:
        UserError: the loss returned another shape than its kind says.
    """
    value = as_float32(term(quantities))
    mask_BN = quantities[f"{term.side}_mask_BN"]
    expected = mask_BN.shape[:1] if term.kind == "sequence" else mask_BN.shape
    if value.shape != expected:
        raise UserError(
            f"the loss of {term.name!r} is of kind {term.kind!r} and returned {list(value.shape)} instead of {list(expected)}",
            "return one value a sequence [B] or a label [B, N], as the kind says, without a mean over the batch",
        )
    return value.sum() if term.kind == "sequence" else masked_sum(value, mask_BN).sum()
