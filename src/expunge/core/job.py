"""What determines the memory and time of a training: the shape of the model, the rows, and the step.

These are plain numbers: the formulas of `core.footprint` and `core.step_cost` need neither torch nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Placement = Literal["ddp", "fsdp2", "hsdp", "fsdp2_offload"]
"""ddp: each rank has the whole weights; fsdp2: they are split over all ranks; hsdp: split over the ranks of a
node, and replicated across nodes; fsdp2_offload: as fsdp2, and the weights stay in the memory of the CPU."""
Reference = Literal["none", "cached", "adapter_off", "frozen_adapter", "frozen"]
OFFLOADED: Final = "fsdp2_offload"


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder.

    Attributes:
        layers: number of layers.
        hidden: D, width of the residual stream.
        intermediate: F, width of the feed-forward part.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values.
        head_dim: width of a head.
        vocab: V, size of the vocabulary.
        tied: whether input and output embeddings are the same weights.
        gated: whether the feed-forward part has three matrices (SwiGLU) instead of two.
        parameters: number of all weights; 0 = computed from the other numbers.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    gated: bool = True
    parameters: int = 0

    @property
    def queries(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys of all heads; that of the values is the same."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> int:
        """Number of weights in the linear layers of one layer."""
        feed = (3 if self.gated else 2) * self.hidden * self.intermediate
        return 2 * self.hidden * (self.queries + self.keys) + feed

    @property
    def embedding(self) -> int:
        """Number of weights of one embedding."""
        return self.vocab * self.hidden

    @property
    def total(self) -> int:
        """Number of all weights."""
        norms = (2 * self.layers + 1) * self.hidden
        counted = self.layers * self.matrices + (1 if self.tied else 2) * self.embedding + norms
        return self.parameters or counted


@dataclass(frozen=True)
class Load:
    """One side of a micro-batch on one rank.

    Attributes:
        name: name of the side.
        rows: B, number of rows.
        tokens: T, tokens of a row, with padding.
        labels: number of label tokens of all rows.
        padded: whether rows are padded, so that attention needs a mask.
        own: whether the model in training makes a forward pass.
        reference: whether a live reference makes a forward pass.
        whole_distribution: whether a loss reads the logits, not only the log-probs of the labels.
    """

    name: str
    rows: int
    tokens: int
    labels: int
    padded: bool = False
    own: bool = True
    reference: bool = False
    whole_distribution: bool = False


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter.

    Attributes:
        rank: r.
        inputs: sum of the input widths of the adapted linear layers of one decoder layer.
        outputs: sum of their output widths.
        dropout: whether it uses dropout.
    """

    rank: int
    inputs: int
    outputs: int
    dropout: bool


@dataclass(frozen=True)
class Job:
    """What determines the memory and time of one training.

    Attributes:
        shape: shape of the model.
        trained: number of trained weights.
        frozen: number of frozen weights.
        groups: the sides of a micro-batch, in groups that can be back-propagated one after the other.
        sequential: whether this is done; otherwise all groups are back-propagated together.
        micro_batches: number of micro-batches of an optimizer step.
        master_width: bytes of a trained weight, and of its gradient.
        frozen_width: bytes of a frozen weight.
        compute_width: bytes of a number in the compute dtype.
        moments_width: bytes that the optimizer stores per trained weight.
        reference: how the model before unlearning is evaluated.
        checkpointing: whether the backward pass computes the layers again.
        attention_mask: whether attention uses a mask for padded rows (flash attention does not).
        adapter: the adapter that is trained; None = the weights of the model are trained.
        engine: how weights are placed on several ranks.
        node: number of ranks of a node.
    """

    shape: Shape
    trained: int
    frozen: int
    groups: tuple[tuple[Load, ...], ...]
    micro_batches: int = 1
    master_width: int = 4
    frozen_width: float = 4.0
    compute_width: int = 4
    moments_width: float = 8.0
    reference: Reference = "none"
    checkpointing: bool = False
    attention_mask: bool = True
    adapter: Adapter | None = None
    engine: Placement = "ddp"
    sequential: bool = True
    node: int = 8

    @property
    def loads(self) -> tuple[Load, ...]:
        """The sides of a micro-batch."""
        return tuple(load for group in self.groups for load in group)

    @property
    def passes(self) -> tuple[tuple[Load, ...], ...]:
        """The sides that are back-propagated together; their activations are in memory together."""
        return self.groups if self.sequential else (self.loads,)

    @property
    def rows(self) -> int:
        """Rows of one micro-batch on one rank."""
        return max((load.rows for load in self.loads), default=1)

    def parts(self, ranks: int) -> int:
        """The number of ranks over which the weights are split; 1 = each rank has the whole weights."""
        return 1 if self.engine == "ddp" else min(ranks, self.node) if self.engine == "hsdp" else ranks

    def with_rows(self, rows: int) -> Job:
        """The same optimizer step in micro-batches of fewer rows."""
        share = rows / self.rows
        groups = tuple(
            tuple(replace(load, rows=rows, labels=max(1, round(load.labels * share))) for load in group)
            for group in self.groups
        )
        return replace(self, groups=groups, micro_batches=round(self.micro_batches / share))
