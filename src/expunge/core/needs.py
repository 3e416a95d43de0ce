"""The vocabulary of named quantities: a loss asks for what it reads by the names of its positional parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

SIDES = ("forget", "retain", "alternate", "expert", "novice")
DERIVED = {"expert": "forget", "novice": "forget"}
"""Sides that an objective makes of a side of the data."""
QUANTITIES = (
    "logp_BN", "seq_logp_B", "len_B", "logits_BNV", "hidden_BTD", "hidden_LBTD", "mask_BN", "attention_mask_BT", "mask_BT", "label_BN",
)  # fmt: skip
# Which of them a cached table of per-token log-probs can serve, without a reference model in memory.
FROM_LOGP = ("logp_BN", "seq_logp_B", "len_B", "mask_BN")
# Those that take a forward pass of the model.
FROM_PASS = ("logp_BN", "seq_logp_B", "logits_BNV", "hidden_BTD", "hidden_LBTD")
OWN = {"control_D": "kept by the objective", "parameters": "the parameters that are trained"}
"""Quantities of no side of a batch."""

_PATTERN = re.compile(rf"^(?P<ref>ref_)?(?P<side>{'|'.join(SIDES)})_(?P<quantity>{'|'.join(QUANTITIES)})$")


@dataclass(frozen=True)
class Need:
    """One quantity that a loss reads.

    Attributes:
        name: the parameter's name, such as `ref_forget_seq_logp_B`.
        side: one of `SIDES`; empty for a quantity of no side (see `OWN`).
        quantity: logp_BN, seq_logp_B, len_B, logits_BNV, hidden_BTD, hidden_LBTD, mask_BN, mask_BT,
            attention_mask_BT or label_BN.
        reference: whether the quantity comes from the model before unlearning.
    """

    name: str
    side: str
    quantity: str
    reference: bool

    @property
    def cacheable(self) -> bool:
        """Whether cached per-token log-probs of the reference serve it."""
        return self.reference and self.quantity in FROM_LOGP

    @property
    def hidden(self) -> bool:
        """Whether it is the output of a module inside the model, which `module_regex` names."""
        return self.quantity.startswith("hidden_")


def parse_need(name: str) -> Need:
    """Read a parameter name as a quantity.

    Raises:
        ValueError: the name is not in the vocabulary.
    """
    if name in OWN:
        return Need(name, "", name, False)
    match = _PATTERN.match(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not a quantity; a quantity is [ref_]{{{','.join(SIDES)}}}_{{{','.join(QUANTITIES)}}}, or one of {', '.join(OWN)}"
        )
    return Need(name, match["side"], match["quantity"], match["ref"] is not None)
