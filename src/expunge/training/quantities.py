"""From names to tensors: exactly the quantities that an objective's terms read, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge.core.errors import UserError
from expunge.core.needs import DERIVED, Need
from expunge.lm.labels import Batch, LabelIndex, Side, label_index
from expunge.lm.logprobs import sequence_logp, token_logp
from expunge.models.outputs import label_outputs
from expunge.training.places import at_places, field_labels

FROM_LABELS = ("mask_BN", "mask_BT", "attention_mask_BT", "label_BN", "len_B")
"""Quantities that the batch alone gives, without a model."""
FROM_LOGITS = ("logits_BNV", "logp_BN", "seq_logp_B")
"""Quantities that one forward pass gives at label positions."""
FROM_MODULES = ("hidden_BTD", "hidden_LBTD")
"""Quantities that the same pass gives of the modules that `module_regex` names."""
FROM_MODEL = FROM_LOGITS + FROM_MODULES

Hidden = str | Sequence[str] | None


class ReferenceOutputs(Protocol):
    """What a reference gives for a side: log-probs [B, N] at its label positions and, where a model is at hand, logits [B, N, V]."""

    @property
    def logp_BN(self) -> Tensor: ...  # noqa: D102, N802
    @property
    def logits_BNV(self) -> Tensor | None: ...  # noqa: D102, N802
    @property
    def hidden_BTD(self) -> Tensor | None: ...  # noqa: D102, N802
    @property
    def hidden_LBTD(self) -> Tensor | None: ...  # noqa: D102, N802


class Reference(Protocol):
    """The model before unlearning: a frozen copy, or its cached log-probs."""

    def outputs(self, side_name: str, side: Side, /) -> ReferenceOutputs:
        """Its outputs on a side of a batch, in eval mode, without gradient."""


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
    known, sides = FROM_LABELS + FROM_LOGITS + (() if hidden is None else FROM_MODULES), tuple(sides)
    for need in needs:
        if not need.side:
            continue
        if need.quantity not in known:
            raise UserError(
                f"the quantity {need.name!r} cannot be built in training",
                f"a loss may read: {', '.join(known)}",
            )
        if DERIVED.get(need.side, need.side) not in sides:
            raise UserError(
                f"a loss reads {need.name!r}, but the data has no side {need.side!r}",
                f"the data has: {', '.join(sides)}",
            )
        if need.reference and need.quantity in FROM_MODEL and reference is None:
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
    places: str = "labels",
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build every quantity named, with one forward pass a side and model.

    Args:
        needs: what to build; repeats are built once.
        model: the model in training, wrapped as it is trained.
        batch: sides of the batch, on the model's device.
        reference: the model before unlearning, where a need asks for it.
        autocast: opens the context in which the model in training computes, so that the reference computes
            alike.
        hidden: the modules whose output is read as `hidden_BTD` or `hidden_LBTD`.
        places: the positions that are looked at, see `training.places`.
        own: quantities of no side, handed through.

    Returns:
        Tensors by the needs' names, and `{side}_mask_BN` of every side that is read. N is counted a side.
        Log-probs are natural logs in float32, padded places hold arbitrary values and are told by the mask;
        `mask_BT` is the label mask at the tokens' own positions.
    """
    by_side: dict[tuple[str, bool], dict[str, str]] = {}
    found: dict[str, Any] = {}
    for need in needs:
        if need.side:
            by_side.setdefault((need.side, need.reference), {})[need.quantity] = need.name
        else:
            found[need.name] = (own or {})[need.name]
    collated, batch = batch, at_places(batch, places)
    indices = {
        name: label_index(batch[name].get("targets", batch[name]["input_ids"]), batch[name]["label_mask"])
        for name in dict.fromkeys(side for side, _ in by_side)
    }
    found |= {f"{name}_mask_BN": index.mask_BN for name, index in indices.items()}
    for (side_name, is_reference), names in by_side.items():
        side, index = batch[side_name], indices[side_name]
        values: dict[str, Tensor | None]
        if not any(quantity in FROM_MODEL for quantity in names):
            values = _from_labels(side, index)
        elif is_reference:
            assert reference is not None, "check_servable runs before training"
            with torch.no_grad(), autocast():
                outputs = reference.outputs(side_name, side)
            values = _from_logp(outputs.logp_BN, outputs.logits_BNV, side, index)
            values |= {"hidden_BTD": outputs.hidden_BTD, "hidden_LBTD": outputs.hidden_LBTD}
        else:
            wanted = hidden if any(quantity in FROM_MODULES for quantity in names) else None
            given = label_outputs(model, side, index=index, hidden=wanted)
            logp_BN = (
                token_logp(given.logits_BNV, index.label_BN)
                if {"logp_BN", "seq_logp_B"} & set(names)
                else None
            )
            values = _from_logp(logp_BN, given.logits_BNV, side, index)
            values |= {"hidden_BTD": given.hidden_BTD, "hidden_LBTD": given.hidden_LBTD}
        if places in ("predictors", "all"):
            values["label_BN"] = field_labels(collated[side_name], places)
        for quantity, name in names.items():
            value = values[quantity]
            if value is None:
                raise UserError(
                    f"the reference cannot give {name!r}",
                    "use a frozen copy of the model as reference, not cached log-probs",
                )
            found[name] = value
    return found


def _from_labels(side: Side, index: LabelIndex) -> dict[str, Tensor | None]:
    return {
        "mask_BN": index.mask_BN,
        "mask_BT": side["label_mask"],
        "attention_mask_BT": side["attention_mask"].bool(),
        "label_BN": index.label_BN,
        "len_B": index.mask_BN.sum(-1),
    }


def _from_logp(
    logp_BN: Tensor | None, logits_BNV: Tensor | None, side: Side, index: LabelIndex
) -> dict[str, Tensor | None]:
    return {
        **_from_labels(side, index),
        "logp_BN": logp_BN,
        "seq_logp_B": None if logp_BN is None else sequence_logp(logp_BN, index.mask_BN),
        "logits_BNV": logits_BNV,
    }
