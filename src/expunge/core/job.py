"""What determines the memory and time of a training: the shape of the model, the rows, and the step.

Plain numbers, so that the formulas of `core.footprint` and `core.step_cost` need neither torch nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Engine = Literal["ddp", "fsdp2", "fsdp2_offload"]
Reference = Literal["none", "cached", "adapter_off", "frozen_adapter", "frozen"]
OFFLOADED = "fsdp2_offload"


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder.

    Attributes:
        layers: number of them.
        hidden: D, width of the residual stream.
        intermediate: F, width inside the feed-forward part.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        vocab: V.
        tied: whether the output embeddings are the input embeddings.
        gated: whether the feed-forward part has three matrices (SwiGLU) instead of two.
        parameters: all weights; 0 = count them from the other numbers.
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
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> int:
        """Weights of one layer's linear layers."""
        feed = (3 if self.gated else 2) * self.hidden * self.intermediate
        return 2 * self.hidden * (self.queries + self.keys) + feed

    @property
    def embedding(self) -> int:
        """Weights of one matrix over the vocabulary."""
        return self.vocab * self.hidden

    @property
    def total(self) -> int:
        """All weights."""
        norms = (2 * self.layers + 1) * self.hidden
        counted = self.layers * self.matrices + (1 if self.tied else 2) * self.embedding + norms
        return self.parameters or counted


@dataclass(frozen=True)
class Load:
    """One side of a micro-batch on one rank.

    Attributes:
        name: of the side.
        rows: B.
        tokens: T, padded tokens a row.
        labels: label tokens of all its rows.
        padded: whether rows of unequal length are padded, which takes a mask of attention.
        own: forward passes of the model in training: 0 or 1.
        reference: forward passes of a live reference: 0 or 1.
        whole_distribution: whether a loss reads the logits themselves, not the labels' log-probs alone.
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
        inputs: widths of the adapted layers' inputs, summed over one decoder layer.
        outputs: widths of their outputs, likewise.
        dropout: whether it has one.
    """

    rank: int
    inputs: int
    outputs: int
    dropout: bool


@dataclass(frozen=True)
class Job:
    """One training, as far as memory and time depend on it.

    Attributes:
        shape: of the model.
        trained: weights that are trained.
        frozen: weights that are not.
        groups: the sides of a micro-batch; groups are back-propagated one after the other, and the
            activations of one group are in memory together.
        micro_batches: of one optimizer step.
        steps: optimizer steps; None = not known.
        master_width: bytes of a trained weight and of its gradient.
        frozen_width: bytes of a weight that is not trained.
        compute_width: bytes of a number that is computed with.
        moments_width: bytes that the optimizer keeps a trained weight.
        step_width: bytes a trained weight that a step of the optimizer holds for a moment.
        reference: how the model before unlearning is read.
        checkpointing: whether layers are computed again in the backward pass.
        attention_mask: whether attention takes a mask where rows are padded (flash attention does not).
        adapter: None = the weights themselves are trained.
        engine: how weights are placed on several ranks.
    """

    shape: Shape
    trained: int
    frozen: int
    groups: tuple[tuple[Load, ...], ...]
    micro_batches: int = 1
    steps: int | None = None
    master_width: int = 4
    frozen_width: float = 4.0
    compute_width: int = 4
    moments_width: float = 8.0
    step_width: float = 0.0
    reference: Reference = "none"
    checkpointing: bool = False
    attention_mask: bool = True
    adapter: Adapter | None = None
    engine: Engine = "ddp"

    @property
    def loads(self) -> tuple[Load, ...]:
        """The sides of a micro-batch."""
        return tuple(load for group in self.groups for load in group)

    @property
    def rows(self) -> int:
        """Rows of one micro-batch on one rank."""
        return max((load.rows for load in self.loads), default=1)

    def sharded(self, ranks: int) -> bool:
        """Whether the weights are split over the ranks."""
        return self.engine != "ddp" and ranks > 1

    def with_rows(self, rows: int) -> Job:
        """The same optimizer step in micro-batches of fewer rows."""
        share = rows / self.rows
        groups = tuple(
            tuple(replace(load, rows=rows, labels=max(1, round(load.labels * share))) for load in group)
            for group in self.groups
        )
        return replace(self, groups=groups, micro_batches=round(self.micro_batches / share))
