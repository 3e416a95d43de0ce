"""The vocabulary of named quantities: the positional parameters of a loss name the quantities that it reads.

To add a quantity, add one line to `QUANTITIES` and one function to `training.quantities` that computes it.
The function is not needed if the objective gives the quantity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Source = Literal["labels", "logp", "logits", "modules", "given"]
"""What a quantity is computed from: the batch alone; the log-probs of the labels; the logits at the labels;
the outputs of the modules that match `module_regex`. A given quantity comes from the objective unchanged."""

QUANTITIES: dict[str, Source] = {
    "mask_BN": "labels",
    "label_BN": "labels",
    "len_B": "labels",
    "mask_BT": "labels",
    "attention_mask_BT": "labels",
    "logp_BN": "logp",
    "seq_logp_B": "logp",
    "logits_BNV": "logits",
    "hidden_BTD": "modules",
    "hidden_LBTD": "modules",
    "control_D": "given",
    "parameters": "given",
}
"""Every quantity and its source. The suffix of a name is the quantity's shape."""
SIDES = {
    "forget": "forget",
    "retain": "retain",
    "alternate": "alternate",
    "expert": "forget",
    "novice": "forget",
}
"""Every side, and the side of the data that it is computed from; objectives derive `expert` and `novice`."""

_OF_A_SIDE = tuple(name for name, source in QUANTITIES.items() if source != "given")
_PATTERN = re.compile(rf"^(?P<ref>ref_)?(?P<side>{'|'.join(SIDES)})_(?P<quantity>{'|'.join(_OF_A_SIDE)})$")


@dataclass(frozen=True)
class Need:
    """One quantity that a loss reads.

    Attributes:
        name: the parameter's name, such as `ref_forget_seq_logp_B`.
        side: one of `SIDES`; empty for a quantity that the objective gives.
        quantity: one of `QUANTITIES`.
        reference: whether the quantity is of the reference, which is the model before unlearning.
    """

    name: str
    side: str
    quantity: str
    reference: bool

    @property
    def source(self) -> Source:
        """What the quantity is computed from."""
        return QUANTITIES[self.quantity]

    @property
    def data_side(self) -> str:
        """The side of the data that the quantity needs; empty for a quantity that the objective gives."""
        return SIDES.get(self.side, "")

    @property
    def from_pass(self) -> bool:
        """Whether it needs a forward pass, of the trained model or of the reference."""
        return self.source in ("logp", "logits", "modules")

    @property
    def from_reference(self) -> bool:
        """Whether it needs the reference. A quantity of the batch alone never does, even with `ref_`."""
        return self.reference and self.from_pass

    @property
    def cacheable(self) -> bool:
        """Whether a cached table of the reference's label log-probs is enough to compute it."""
        return self.reference and self.source in ("logp", "labels")

    @property
    def hidden(self) -> bool:
        """Whether it is the output of a module inside the model, which `module_regex` names."""
        return self.source == "modules"


def parse_need(name: str) -> Need:
    """Read a parameter name as a quantity.

    Raises:
        ValueError: the name is not in the vocabulary.
    """
    if QUANTITIES.get(name) == "given":
        return Need(name, "", name, False)
    match = _PATTERN.match(name)
    if match is None:
        given = ", ".join(other for other, source in QUANTITIES.items() if source == "given")
        raise ValueError(
            f"{name!r} is not a quantity; a quantity is"
            f" [ref_]{{{','.join(SIDES)}}}_{{{','.join(_OF_A_SIDE)}}}, or one of {given}"
        )
    return Need(name, match["side"], match["quantity"], match["ref"] is not None)


def independent(terms: Sequence[Sequence[Need]]) -> list[list[int]]:
    """Groups of terms that can be back-propagated one after the other.

    No two groups read the same side of the model in training.

    Returns:
        The indices of the terms of each group.
    """
    groups: list[tuple[set[str], list[int]]] = []
    for number, needs in enumerate(terms):
        sides = {need.side for need in needs if not need.reference and need.from_pass}
        shared = [group for group in groups if group[0] & sides]
        members = [*(member for _, own in reversed(shared) for member in own), number]
        groups = [group for group in groups if group not in shared]
        groups.append((sides.union(*(own for own, _ in shared)), members))
    return [members for _, members in groups]
