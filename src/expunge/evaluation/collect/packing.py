"""Examples that begin alike, packed so that their common beginning goes through the model once.

The answers of one question share its prompt, which is most of their tokens. Packed, they are one sequence: the prompt, then each answer,
under a mask that lets an answer see the prompt and itself, at the positions that it has on its own. The numbers are those of separate
passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.data.encoded import Encoded
from expunge.lm.labels import LabelIndex, Side

LONGEST = 1024
"""Tokens of a packed sequence at most: attention costs their square."""


class Branch(NamedTuple):
    """One example after its prefix.

    Attributes:
        example: its number.
        ids: tokens from the first label to the last.
        label: which of them are labels.
    """

    example: int
    ids: tuple[int, ...]
    label: tuple[bool, ...]


class Group(NamedTuple):
    """Examples with one beginning.

    Attributes:
        prefix: tokens before the first label.
        branches: what follows in each.
    """

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def size(self) -> int:
        """Tokens when packed."""
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


class Packed(NamedTuple):
    """A batch ready for the model.

    Attributes:
        side: tokens and masks, [B, T].
        labels: label positions, [B, N].
        kwargs: attention mask [B, 1, T, T] and positions of shared prefixes; empty where each sequence is one example.
        pieces: (example, label tokens) in the order of the labels.
        tokens: that are not padding.
    """

    side: Side
    labels: LabelIndex
    kwargs: dict[str, Tensor]
    pieces: list[tuple[int, int]]
    tokens: int


def group_by_prefix(examples: Sequence[Encoded], share: bool, longest: int = LONGEST) -> list[Group]:
    """Put examples with the same tokens before their first label together; examples without labels are left out.

    Args:
        examples: what to group; tokens after the last label are dropped, since nothing before them sees them.
        share: False = a group an example.
        longest: packed tokens at most, unless one example alone is longer.
    """
    open_groups: dict[tuple[int, ...], list[Branch]] = {}
    done: list[Group] = []
    for number, example in enumerate(examples):
        labels = [position for position, counted in enumerate(example.label_mask) if counted]
        if not labels:
            continue
        first, last = labels[0], labels[-1] + 1
        prefix = example.input_ids[:first]
        branch = Branch(number, example.input_ids[first:last], example.label_mask[first:last])
        group = open_groups.setdefault(prefix, [])
        if group and (not share or len(prefix) + sum(len(item.ids) for item in group) + len(branch.ids) > longest):
            done.append(Group(prefix, tuple(group)))
            group = open_groups[prefix] = []
        group.append(branch)
    return done + [Group(prefix, tuple(branches)) for prefix, branches in open_groups.items()]


def pack(groups: Sequence[Group], pad_id: int, dtype: torch.dtype) -> Packed:
    """A batch of groups, padded on the right.

    Args:
        groups: at least one.
        pad_id: any valid token.
        dtype: of the additive attention mask.
    """
    width = max(group.size for group in groups)
    size = max(sum(sum(branch.label) for branch in group.branches) for group in groups)
    input_ids_BT = torch.full((len(groups), width), pad_id)
    position_BT = torch.zeros(len(groups), width, dtype=torch.long)
    # 0 = the prefix, 1, 2, ... the branches, -1 = padding.
    segment_BT = torch.full((len(groups), width), -1)
    label_mask_BT = torch.zeros(len(groups), width, dtype=torch.bool)
    predictor_BN, label_BN = torch.zeros(len(groups), size, dtype=torch.long), torch.zeros(len(groups), size, dtype=torch.long)
    mask_BN = torch.zeros(len(groups), size, dtype=torch.bool)
    pieces: list[tuple[int, int]] = []
    for line, group in enumerate(groups):
        flat = _flat(group)
        input_ids_BT[line, : group.size] = torch.tensor(flat.ids)
        position_BT[line, : group.size] = torch.tensor(flat.position)
        segment_BT[line, : group.size] = torch.tensor(flat.segment)
        label_mask_BT[line, flat.label] = True
        count = len(flat.label)
        predictor_BN[line, :count] = torch.tensor(flat.predictor)
        label_BN[line, :count] = input_ids_BT[line, flat.label]
        mask_BN[line, :count] = True
        pieces += [(branch.example, sum(branch.label)) for branch in group.branches]
    side: Side = {"input_ids": input_ids_BT, "attention_mask": (segment_BT >= 0).long(), "label_mask": label_mask_BT}
    shared = any(len(group.branches) > 1 for group in groups)
    kwargs = {"attention_mask": _tree_mask(segment_BT, dtype), "position_ids": position_BT} if shared else {}
    return Packed(side, LabelIndex(predictor_BN, label_BN, mask_BN), kwargs, pieces, sum(group.size for group in groups))


class _Flat(NamedTuple):
    ids: list[int]
    position: list[int]
    segment: list[int]
    label: list[int]
    predictor: list[int]


def _flat(group: Group) -> _Flat:
    """A group as one sequence."""
    start = len(group.prefix)
    flat = _Flat(list(group.prefix), list(range(start)), [0] * start, [], [])
    for number, branch in enumerate(group.branches, start=1):
        here = len(flat.ids)
        for offset, counted in enumerate(branch.label):
            if counted:
                flat.label.append(here + offset)
                flat.predictor.append(here + offset - 1 if offset else start - 1)
        flat.ids.extend(branch.ids)
        flat.position.extend(range(start, start + len(branch.ids)))
        flat.segment.extend([number] * len(branch.ids))
    return flat


def _tree_mask(segment_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T] additive: 0 where a token may look, the lowest number elsewhere; padding looks at itself, to stay finite."""
    width = segment_BT.shape[1]
    asks_BT1, asked_B1T = segment_BT.unsqueeze(2), segment_BT.unsqueeze(1)
    earlier_TT = torch.ones(width, width, dtype=torch.bool).tril()
    seen_BTT = earlier_TT & (asked_B1T >= 0) & ((asked_B1T == 0) | (asked_B1T == asks_BT1)) | torch.eye(width, dtype=torch.bool)
    return torch.zeros(seen_BTT.shape, dtype=dtype).masked_fill(~seen_BTT, torch.finfo(dtype).min).unsqueeze(1)


def can_share(model: Any, longest: int) -> bool:
    """Whether a model takes a mask of our own over whole sequences: plain attention in every layer, no state that runs along the tokens.

    Args:
        model: unwrapped.
        longest: tokens of the longest example; a sliding window at least as wide hides nothing.
    """
    config = model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        config.model_type in SHARING
        and getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
        and (window is None or longest <= window)
    )


SHARING = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo2", "smollm3", "stablelm",
})  # fmt: skip
"""Model types whose attention takes a mask as it is given; tested against separate passes."""
