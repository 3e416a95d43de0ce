"""Examples with a common prefix, packed so that the model processes the prefix once.

The answers of one question share its prompt, which is most of their tokens, and wrong answers begin like the
right one. Packed, they are one sequence: a tree, written branch after branch. Each token attends to the
tokens before it on its own path from the root, at the positions of the unpacked example. The numbers equal
those of separate passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.data.collate import hidden_places
from expunge.data.encoded import Encoded
from expunge.lm.labels import LabelIndex, Side
from expunge.models.attention import attention_of

LONGEST = 1024
"""Tokens of a packed sequence at most: attention costs their square."""


class Tree:
    """Examples with one prompt; each example is a path from the root.

    Args:
        prompt: tokens before the first label, shared by all examples; at least one.
        hidden: the token that no token attends to, see `Encoded.hidden`.

    Attributes:
        ids: token of each node, in the order in which nodes were added.
        parent: the node before each node; -1 for the root.
        scored: node that is a label of some example -> its index among the labels.
        ways: example -> its label nodes, in order.
    """

    def __init__(self, prompt: Sequence[int], hidden: int | None = None) -> None:
        self.ids = list(prompt)
        self.hidden = hidden
        self.parent = list(range(-1, len(prompt) - 1))
        self.scored: dict[int, int] = {}
        self.ways: dict[int, list[int]] = {}
        self._stem = len(prompt) - 1
        self._child: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, example: int, ids: Sequence[int], label: Sequence[bool]) -> None:
        """Add an example's tokens after the prompt; `label` says which of them are labels."""
        node, way = self._stem, []
        for token, counted in zip(ids, label, strict=True):
            child = self._child.get((node, token))
            if child is None:
                child = self._child[node, token] = len(self.ids)
                self.ids.append(token)
                self.parent.append(node)
            node = child
            if counted:
                self.scored.setdefault(node, len(self.scored))
                way.append(node)
        self.ways[example] = way

    def layout(self) -> Layout:
        """The tree as one sequence, branch after branch."""
        children: list[list[int]] = [[] for _ in self.ids]
        for node, parent in enumerate(self.parent[1:], start=1):
            children[parent].append(node)
        order, waiting = [], [0]
        while waiting:
            node = waiting.pop()
            order.append(node)
            waiting += reversed(children[node])
        place = {node: number for number, node in enumerate(order)}
        depth, last = [0] * len(order), list(range(len(order)))
        for number, node in enumerate(order[1:], start=1):
            depth[number] = depth[place[self.parent[node]]] + 1
        for number in range(len(order) - 1, 0, -1):
            above = place[self.parent[order[number]]]
            last[above] = max(last[above], last[number])
        labels = [place[node] for node in self.scored]
        predictors = [place[self.parent[node]] for node in self.scored]
        return Layout([self.ids[node] for node in order], depth, last, labels, predictors)


class Layout(NamedTuple):
    """A tree as a sequence.

    Attributes:
        ids: tokens.
        position: number of tokens before each token on its path.
        last: index of the last token that may attend to each token; so may all tokens in between.
        label: indices of the labels, in the order of `Tree.scored`.
        predictor: index of the token whose output predicts each label.
    """

    ids: list[int]
    position: list[int]
    last: list[int]
    label: list[int]
    predictor: list[int]


class Packed(NamedTuple):
    """A batch ready for the model.

    Attributes:
        side: tokens and masks, [B, T].
        labels: label positions, [B, N].
        kwargs: attention mask [B, 1, T, T] and positions; empty where each sequence is one example.
        ways: example -> its labels, as indices into the labels of the whole batch.
        tokens: number of tokens without padding.
    """

    side: Side
    labels: LabelIndex
    kwargs: dict[str, Tensor]
    ways: dict[int, list[int]]
    tokens: int


def grow(examples: Sequence[Encoded], share: bool, longest: int = LONGEST) -> list[Tree]:
    """Put examples with the same tokens before their first label into trees.

    Args:
        examples: what to pack. Examples without labels are left out. Tokens after the last label are dropped:
            no label depends on them.
        share: False = one tree per example.
        longest: maximum number of tokens of a tree with several examples.
    """
    growing: dict[tuple[tuple[int, ...], int | None], Tree] = {}
    done: list[Tree] = []
    for number, example in enumerate(examples):
        labels = [position for position, counted in enumerate(example.label_mask) if counted]
        if not labels:
            continue
        first, last = labels[0], labels[-1] + 1
        prompt = example.input_ids[:first]
        key = (prompt, example.hidden)
        tree = growing.get(key)
        if tree is None or not share or len(tree) + last - first > longest:
            if tree is not None:
                done.append(tree)
            tree = growing[key] = Tree(prompt, example.hidden)
        tree.add(number, example.input_ids[first:last], example.label_mask[first:last])
    return done + list(growing.values())


def pack(trees: Sequence[Tree], pad_id: int, dtype: torch.dtype) -> Packed:
    """A batch of trees, padded on the right."""
    shape = (len(trees), max(map(len, trees)))
    input_ids_BT = torch.full(shape, pad_id)
    position_BT, last_BT = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    label_mask_BT = torch.zeros(shape, dtype=torch.bool)
    scored = (len(trees), max(len(tree.scored) for tree in trees))
    predictor_BN, label_BN = torch.zeros(scored, dtype=torch.long), torch.zeros(scored, dtype=torch.long)
    mask_BN = torch.zeros(scored, dtype=torch.bool)
    ways: dict[int, list[int]] = {}
    before = 0
    for line, tree in enumerate(trees):
        layout, size, count = tree.layout(), len(tree), len(tree.scored)
        input_ids_BT[line, :size] = torch.tensor(layout.ids)
        position_BT[line, :size] = torch.tensor(layout.position)
        last_BT[line, :size] = torch.tensor(layout.last)
        label_mask_BT[line, layout.label] = True
        predictor_BN[line, :count] = torch.tensor(layout.predictor)
        label_BN[line, :count] = input_ids_BT[line, layout.label]
        mask_BN[line, :count] = True
        ways |= {example: [before + tree.scored[node] for node in way] for example, way in tree.ways.items()}
        before += count
    seen_BT = last_BT >= 0
    hidden_BT = hidden_places(trees, input_ids_BT)
    if hidden_BT is not None:
        seen_BT &= ~hidden_BT
    side: Side = {"input_ids": input_ids_BT, "attention_mask": seen_BT.long(), "label_mask": label_mask_BT}
    shared = any(len(tree.ways) > 1 for tree in trees)
    if hidden_BT is not None and not shared:
        side["position_ids"] = position_BT
    mask_B1TT = _tree_mask(last_BT, seen_BT, dtype) if shared else None
    kwargs = {} if mask_B1TT is None else {"attention_mask": mask_B1TT, "position_ids": position_BT}
    return Packed(side, LabelIndex(predictor_BN, label_BN, mask_BN), kwargs, ways, sum(map(len, trees)))


def _tree_mask(last_BT: Tensor, seen_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T] additive mask: 0 where a token may attend, the lowest number elsewhere.

    A token that may attend to nothing attends to itself, so that its output stays finite.
    """
    place_T = torch.arange(last_BT.shape[1])
    before_BTT = (place_T <= place_T.unsqueeze(1)) & (last_BT.unsqueeze(1) >= place_T.unsqueeze(1))
    seen_BTT = before_BTT & seen_BT.unsqueeze(1)
    seen_BTT |= torch.eye(len(place_T), dtype=torch.bool) & ~seen_BTT.any(-1, keepdim=True)
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype).masked_fill(~seen_BTT, torch.finfo(dtype).min)
    return mask_BTT.unsqueeze(1)


def can_share(model: Any, longest: int) -> bool:
    """Whether a model accepts our own attention mask: plain attention in every layer, no recurrent state.

    Args:
        model: unwrapped.
        longest: tokens of the longest example; a sliding window of at least this width hides nothing.
    """
    config = model.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        config.model_type in SHARING
        and attention_of(model) in ("sdpa", "eager")
        and (window is None or longest <= window)
    )


SHARING = frozenset(
    {
        *("llama", "mistral", "olmo2", "smollm3", "stablelm", "phi", "phi3"),
        *("qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    }
)
"""Model types whose attention uses a given mask unchanged; tested against separate passes."""
