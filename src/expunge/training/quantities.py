"""From names to tensors: exactly the quantities that an objective's terms read, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.core.needs import QUANTITIES, Need
from expunge.lm.labels import Batch, Labels, Side, laid_out, padded
from expunge.models.outputs import SideOutputs, side_outputs
from expunge.models.reference import Reference

Hidden = str | Sequence[str] | None


@dataclass(frozen=True)
class Seen:
    """One side of a batch and what a model gives for it: all that a quantity is made from.

    Attributes:
        side: the tensors, laid out.
        outputs: of the model in training or of the reference; None where no quantity takes a forward pass.
    """

    side: Side
    outputs: SideOutputs | None

    @property
    def labels(self) -> Labels:
        """Where the labels are."""
        return self.side["labels"]

    @property
    def given(self) -> SideOutputs:
        """The outputs, for a quantity that takes a forward pass."""
        assert self.outputs is not None, "a quantity that takes a forward pass was not counted as one"
        return self.outputs


MAKERS: dict[str, Callable[[Seen], Tensor | None]] = {
    "mask_BN": lambda seen: seen.labels["mask_BN"],
    "label_BN": lambda seen: padded(seen.labels.get("shown_M", seen.labels["label_M"]), seen.labels),
    "len_B": lambda seen: seen.labels["mask_BN"].sum(-1),
    "mask_BT": lambda seen: seen.side["label_mask"],
    "attention_mask_BT": lambda seen: seen.side["attention_mask"].bool(),
    "logp_BN": lambda seen: seen.given.logp_BN,
    "seq_logp_B": lambda seen: seen.given.logp_BN.sum(-1),
    "logits_BNV": lambda seen: seen.given.logits_BNV,
    "hidden_BTD": lambda seen: seen.given.hidden_BTD,
    "hidden_LBTD": lambda seen: seen.given.hidden_LBTD,
}
"""How each quantity of a side is made; None where a cached reference cannot give it."""


def check_servable(
    needs: Iterable[Need], sides: Iterable[str], reference: Reference | None, hidden: Hidden = None
) -> None:
    """Refuse before training what could not be built during it.

    Args:
        needs: all that the terms read.
        sides: the sides of a batch.
        reference: what provides the model before unlearning, if anything does.
        hidden: the modules whose output is read, if any.

    Raises:
        UserError: a quantity that the driver does not build, a side that the data does not have, or a
            reference that is missing.
    """
    known = [
        name
        for name, source in QUANTITIES.items()
        if source != "given" and (source != "modules" or hidden is not None)
    ]
    sides = tuple(sides)
    for need in needs:
        if not need.side:
            continue
        if need.quantity not in known:
            raise UserError(
                f"the quantity {need.name!r} cannot be built in training",
                f"a loss may read: {', '.join(known)}",
            )
        if need.data_side not in sides:
            raise UserError(
                f"a loss reads {need.name!r}, but the data has no side {need.side!r}",
                f"the data has: {', '.join(sides)}",
            )
        if need.from_reference and reference is None:
            raise UserError(
                f"a loss reads {need.name!r}, but no reference was given",
                "give the model before unlearning as reference",
            )


def build_quantities(
    needs: Iterable[Need],
    model: nn.Module,
    batch: Batch,
    reference: Reference | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    hidden: Hidden = None,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build every quantity named, with one forward pass a side and model.

    Args:
        needs: what to build; repeats are built once.
        model: the model in training, wrapped as it is trained.
        batch: sides of the batch, on the model's device; one that is not laid out yet is laid out here.
        reference: the model before unlearning, where a need asks for it.
        autocast: opens the context in which the model in training computes, so that the reference computes
            alike.
        hidden: the modules whose output is read as `hidden_BTD` or `hidden_LBTD`.
        own: quantities of no side, handed through.

    Returns:
        Tensors by the needs' names, and `{side}_mask_BN` of every side that is read. N is counted a side.
        Log-probs are natural logs in float32; places that are no label hold 0, without gradient;
        `mask_BT` is the label mask at the tokens' own positions.
    """
    by_side: dict[tuple[str, bool], list[Need]] = {}
    found: dict[str, Any] = {}
    for need in dict.fromkeys(needs):
        if need.side:
            by_side.setdefault((need.side, need.reference), []).append(need)
        else:
            found[need.name] = (own or {})[need.name]
    sides = {
        name: batch[name] if "labels" in batch[name] else laid_out(batch[name])
        for name in dict.fromkeys(side for side, _ in by_side)
    }
    found |= {f"{name}_mask_BN": side["labels"]["mask_BN"] for name, side in sides.items()}
    for (name, is_reference), wanted in by_side.items():
        outputs = None
        if is_reference and any(need.from_pass for need in wanted):
            assert reference is not None, "check_servable runs before training"
            with torch.no_grad(), autocast():
                outputs = reference.outputs(name, sides[name])
        elif any(need.from_pass for need in wanted):
            read = hidden if any(need.hidden for need in wanted) else None
            outputs = side_outputs(model, sides[name], hidden=read)
        seen = Seen(sides[name], outputs)
        for need in wanted:
            value = MAKERS[need.quantity](seen)
            if value is None:
                raise UserError(
                    f"the reference cannot give {need.name!r}",
                    "use a frozen copy of the model as reference, not cached log-probs",
                )
            found[need.name] = value
    return found
