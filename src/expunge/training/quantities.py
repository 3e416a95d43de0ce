"""From names to tensors: exactly the quantities that the terms of an objective read, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.core.needs import QUANTITIES, Need
from expunge.lm.labels import Batch, Side, laid_out, padded
from expunge.models.outputs import SideOutputs, side_outputs
from expunge.models.reference import Reference

Hidden = str | Sequence[str] | None


MAKERS: dict[str, Callable[[Side, SideOutputs], Tensor | None]] = {
    "mask_BN": lambda side, _: side["labels"]["mask_BN"],
    "label_BN": lambda side, _: padded(
        side["labels"].get("shown_M", side["labels"]["label_M"]), side["labels"]
    ),
    "len_B": lambda side, _: side["labels"]["mask_BN"].sum(-1),
    "mask_BT": lambda side, _: side["label_mask"],
    "attention_mask_BT": lambda side, _: side["attention_mask"].bool(),
    "logp_BN": lambda _, outputs: outputs.logp_BN,
    "seq_logp_B": lambda _, outputs: outputs.logp_BN.sum(-1),
    "logits_BNV": lambda _, outputs: outputs.logits_BNV,
    "hidden_BTD": lambda _, outputs: outputs.hidden_BTD,
    "hidden_LBTD": lambda _, outputs: outputs.hidden_LBTD,
}
"""How each quantity of a side is computed from its tensors and the model's outputs.

None = a cached reference does not have it.
"""


def check_servable(
    needs: Iterable[Need], sides: Iterable[str], reference: Reference | None, hidden: Hidden = None
) -> None:
    """Refuse, before training, terms whose quantities cannot be built.

    Args:
        needs: all quantities that the terms read.
        sides: the sides of a batch.
        reference: the model before unlearning; None = there is none.
        hidden: the modules whose output is read, if any.

    Raises:
        UserError: the driver does not build a quantity, the data lacks a side, or the reference is missing.
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
                f"the data has the sides: {', '.join(sides)}",
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
    """Build all needed quantities with one forward pass per side and model.

    Args:
        needs: what to build; repeats are built once.
        model: the model in training, wrapped as it is trained.
        batch: sides of the batch, on the model's device; a side that is not laid out yet is laid out here.
        reference: the model before unlearning, if a need asks for it.
        autocast: the autocast context of training, for the reference.
        hidden: the modules whose output is read as `hidden_BTD` or `hidden_LBTD`.
        own: quantities without a side, returned unchanged.

    Returns:
        Tensors by the needs' names, and `{side}_mask_BN` of every side that is read. Each side has its own N.
        Log-probs are natural logs in float32; positions without a label hold 0, without gradient;
        `mask_BT` is the label mask at the positions of the tokens.
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
        for need in wanted:
            # Only quantities from a forward pass read the outputs.
            value = MAKERS[need.quantity](sides[name], cast(SideOutputs, outputs))
            if value is None:
                raise UserError(
                    f"a loss reads {need.name!r}, but the reference only holds cached log-probs",
                    "use a frozen copy of the model: reference=frozen",
                )
            found[need.name] = value
    return found
