"""Turn examples into padded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from expunge.data.encoded import Encoded
from expunge.lm.labels import Batch, Side


def collate(encoded: Sequence[Encoded], pad_id: int, side: Literal["right", "left"] = "right") -> Side:
    """Pad examples to the length of the longest, and stack them.

    The attention mask comes from the lengths, never from comparing tokens with the pad token: pad may equal
    EOS, and an EOS that ends a turn counts. Padding is on the right in training, on the left in generation,
    where each row must end with its last token.

    Returns:
        input_ids, attention_mask [B, T] int64, label_mask [B, T] bool, row [B] int64; targets [B, T] int64
        if an example has targets.
    """
    assert encoded, "an empty batch has no width"
    assert side in ("right", "left"), f"no such side: {side}"
    width = max(len(example) for example in encoded)
    input_ids_BT = torch.full((len(encoded), width), pad_id, dtype=torch.long)
    attention_mask_BT = torch.zeros(len(encoded), width, dtype=torch.long)
    label_mask_BT = torch.zeros(len(encoded), width, dtype=torch.bool)
    for number, example in enumerate(encoded):
        start = width - len(example) if side == "left" else 0
        span = slice(start, start + len(example))
        input_ids_BT[number, span] = torch.tensor(example.input_ids, dtype=torch.long)
        attention_mask_BT[number, span] = 1
        label_mask_BT[number, span] = torch.tensor(example.label_mask, dtype=torch.bool)
    row_B = torch.tensor([example.row for example in encoded], dtype=torch.long)
    hidden_BT = hidden_places(encoded, input_ids_BT)
    collated: Side = {
        "input_ids": input_ids_BT,
        "attention_mask": attention_mask_BT,
        "label_mask": label_mask_BT,
        "row": row_B,
    }
    if hidden_BT is not None:
        # Hidden tokens keep their positions, as if no token were hidden.
        collated["position_ids"] = (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)
        collated["attention_mask"] = attention_mask_BT.masked_fill(hidden_BT, 0)
    if any(example.targets is not None for example in encoded):
        predicted = [
            replace(example, input_ids=example.targets or example.input_ids, targets=None)
            for example in encoded
        ]
        collated["targets"] = collate(predicted, pad_id, side)["input_ids"]
    return collated


def hidden_places(encoded: Sequence[Any], input_ids_BT: torch.Tensor) -> torch.Tensor | None:
    """[B, T], True = no position attends here (see `Encoded.hidden`); None if no `.hidden` is a token."""
    if all(example.hidden is None for example in encoded):
        return None
    hidden_B1 = torch.tensor([[-1 if example.hidden is None else example.hidden] for example in encoded])
    return input_ids_BT == hidden_B1


class PairCollator:
    """Collate items of a `PairedDataset` into a `Batch`; each side is padded on the right, separately."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Mapping[str, Encoded]]) -> Batch:
        """Collate the sides by name; all items have the same sides."""
        return {name: collate([item[name] for item in items], self.pad_id) for name in items[0]}
