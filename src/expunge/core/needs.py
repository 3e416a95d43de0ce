"""The vocabulary of named quantities: a loss asks for what it reads by the names of its positional parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

SIDES = ("forget", "retain", "alternate")
QUANTITIES = ("logp_BN", "seq_logp_B", "len_B", "logits_BNV", "hidden_BTD", "mask_BN", "mask_BT", "label_BN")
# Which of them a cached table of per-token log-probs can serve, without a reference model in memory.
FROM_LOGP = ("logp_BN", "seq_logp_B", "len_B", "mask_BN")

_PATTERN = re.compile(rf"^(?P<ref>ref_)?(?P<side>{'|'.join(SIDES)})_(?P<quantity>{'|'.join(QUANTITIES)})$")


@dataclass(frozen=True)
class Need:
    """One quantity that a loss reads.

    Attributes:
        name: the parameter's name, such as `ref_forget_seq_logp_B`.
        side: forget, retain or alternate.
        quantity: logp_BN, seq_logp_B, len_B, logits_BNV, hidden_BTD, mask_BN, mask_BT or label_BN.
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


def parse_need(name: str) -> Need:
    """Read a parameter name as a quantity.

    Raises:
        ValueError: the name is not in the vocabulary.
    """
    match = _PATTERN.match(name)
    if match is None:
        raise ValueError(f"{name!r} is not a quantity; a quantity is [ref_]{{{','.join(SIDES)}}}_{{{','.join(QUANTITIES)}}}")
    return Need(name, match["side"], match["quantity"], match["ref"] is not None)
