"""The most memory that one rank of a training holds at once, by formulas: no weights, no torch.

The formulas count what autograd stores for the backward pass of a decoder with RMS norms, rotary attention in
one kernel and a gated feed-forward part. For such models they differ from `models.memory_tracker`, which
follows the real step, by 15 % at most (tested). For other kinds of layers the difference is larger.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from expunge.core.job import OFFLOADED, Job, Load

HALF, FLOAT = 2, 4
GIB = 2**30
NAMES = {"reference": "frozen reference", "logits": "logits at labels", "unsharded": "largest unit unsharded"}


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank at its peak, by purpose.

    Attributes:
        weights: the weights of the model.
        gradients: gradients of the trained weights, with the buckets in which DDP exchanges them.
        optimizer: moments and other states.
        reference: weights of the model before unlearning.
        activations: what the backward pass needs, and the half-precision weights that autocast makes.
        logits: logits at label positions, with their gradients.
        unsharded: the largest unit of a sharded model, gathered.
    """

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    reference: float = 0
    activations: float = 0
    logits: float = 0
    unsharded: float = 0

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    def named(self) -> dict[str, float]:
        """The parts above 0, by names for users."""
        found = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {NAMES.get(name, name): size for name, size in found.items() if size > 0}


def peak(job: Job, ranks: int = 1) -> Parts:
    """The memory of one rank at its peak: the largest of a few moments of a step.

    Args:
        job: the training.
        ranks: W.

    Returns:
        Bytes by part.
    """
    parts = job.parts(ranks)
    gradients = job.trained * job.master_width / parts
    # With a full set of gradients from an earlier pass, a pass needs more.
    passes = [
        _pass(job, group, parts, gradients if number or job.micro_batches > 1 else 0.0)
        for number, group in enumerate(job.passes)
    ]
    largest = max((moment for moments in passes for moment in moments), key=lambda moment: moment.total)
    on_gpu = 0.0 if job.engine == OFFLOADED and ranks > 1 else 1 / parts
    buckets = job.trained * job.master_width if job.engine == "ddp" and ranks > 1 else 0.0
    return replace(
        largest,
        weights=(job.trained * job.master_width + job.frozen * job.frozen_width) * on_gpu,
        gradients=buckets + (largest.gradients if on_gpu else 0.0),
        optimizer=job.trained * job.moments_width * on_gpu,
        reference=reference_bytes(job, ranks),
    )


def reference_bytes(job: Job, ranks: int = 1) -> float:
    """Bytes of the weights that only the reference needs.

    A frozen copy has its linear layers in the compute dtype; an embedding that is also the output layer stays
    in float32.
    """
    if job.reference == "frozen_adapter" and job.adapter is not None:
        return float(job.trained * FLOAT)
    if job.reference != "frozen":
        return 0.0
    in_float = job.shape.embedding
    others = job.trained + job.frozen - in_float
    copied = others * min(job.compute_width, job.master_width) + in_float * job.master_width
    return copied / job.parts(ranks)


def gib(size: float) -> str:
    """A number of bytes in GiB, with enough digits for a small model."""
    return f"{size / GIB:.2f}" if size >= GIB else f"{size / GIB:.4f}"


def _pass(job: Job, group: tuple[Load, ...], parts: int, present: float) -> list[Parts]:
    """The moments of a forward and backward pass that can be the peak.

    Args:
        job: the training.
        group: the sides of the pass.
        parts: number of ranks over which the weights are split.
        present: bytes of gradients before the pass.
    """
    own = [load for load in group if load.own]
    split = parts > 1
    logits = sum(_logits(job, load) for load in group)
    # The logits' gradient in the compute dtype.
    fading = sum(load.labels for load in own) * job.shape.vocab * float(job.compute_width)
    kept = sum(kept_bytes(job, load, split) for load in own)
    # One layer in the backward pass: what it computes again, and gradients.
    again = sum(layer_bytes(job, load, split) for load in own) if job.checkpointing else 0.0
    inside = again + _backward(job, own, split)
    make = _sharded_moments if split else _whole_moments
    return make(job, kept, inside, logits, fading, present, job.trained * job.master_width / parts)


def _sharded_moments(
    job: Job, kept: float, inside: float, logits: float, fading: float, present: float, gradients: float
) -> list[Parts]:
    """The moments of a pass with sharded weights; arguments in bytes, see `_pass`."""
    shape, trains_all = job.shape, job.adapter is None
    unit, layer = job.compute_width * float(max(shape.embedding, shape.matrices)), float(shape.matrices)
    # The output embeddings are gathered again when the logits have their gradient, in both widths.
    leaving = fading * 3 if job.compute_width == HALF else fading
    # The gradient of a gathered unit. Beside a unit, the next layer is gathered already.
    made = unit if trains_all else 0.0
    gathered = unit + job.compute_width * layer
    # Gathered weights and their copy, also of the next layer; gradients as they are exchanged.
    in_layer = (4 * job.compute_width + (FLOAT if trains_all else 0)) * layer
    grown = max(present, gradients * shape.embedding / job.trained if trains_all else 0.0)
    return [
        Parts(gradients=present, activations=kept, logits=logits),
        Parts(gradients=grown, activations=kept + made, logits=leaving, unsharded=gathered),
        Parts(gradients=grown, activations=kept + inside, unsharded=in_layer),
        Parts(gradients=gradients, activations=inside + 2 * made, unsharded=gathered),
    ]


def _whole_moments(
    job: Job, kept: float, inside: float, logits: float, fading: float, present: float, gradients: float
) -> list[Parts]:
    """The moments of a pass with whole weights on each rank; arguments in bytes, see `_pass`."""
    shape, trains_all = job.shape, job.adapter is None
    embedding = float(shape.embedding * FLOAT) if trains_all else 0.0
    # The gradient of the output embeddings, in float32 and in the compute dtype.
    head = embedding * (1.5 if job.compute_width == HALF else 1)
    casts, in_head = _casts(job), _head_cast(job)
    # With checkpointing, the half-precision weights of the layers are freed before the backward pass.
    cast = in_head if job.checkpointing else casts
    a_layer = (casts - in_head) / max(1, shape.layers) if job.checkpointing else casts - in_head
    # Two gradients of one matrix: the sum so far and a new one, or those of both embeddings if they are tied.
    twice = embedding if present or shape.tied else 0.0
    return [
        Parts(gradients=present, activations=kept + casts, logits=fading),
        Parts(gradients=present, activations=kept + cast, logits=logits),
        Parts(gradients=present, activations=kept + cast + head, logits=fading),
        Parts(gradients=max(present, embedding), activations=kept + a_layer + inside),
        Parts(gradients=gradients, activations=inside + twice),
    ]


def kept_bytes(job: Job, load: Load, split: bool = False) -> float:
    """Bytes that a side's forward pass stores for its backward pass, without the logits."""
    shape, tokens = job.shape, load.rows * load.tokens
    residual = _residual(job, split)
    # Embedding, last norm, table of rotations.
    ends = tokens * (3 * shape.hidden * FLOAT + 2 * shape.head_dim * FLOAT)
    mask = load.rows * load.tokens**2 if load.padded and job.attention_mask else 0
    if job.checkpointing:
        return ends + mask + shape.layers * tokens * shape.hidden * residual
    return ends + mask + shape.layers * layer_bytes(job, load, split)


def layer_bytes(job: Job, load: Load, split: bool = False) -> float:
    """Bytes that one layer stores of a side's forward pass."""
    shape, width, tokens = job.shape, job.compute_width, load.rows * load.tokens
    masked = load.padded and job.attention_mask
    # If attention uses a mask, keys and values are repeated for every head.
    keys = shape.queries if masked else shape.keys
    attention = 2 * shape.queries + 2 * keys
    # Frozen layers store neither their inputs nor the factors of their norms.
    frozen = job.adapter is not None
    feed = ((3 if frozen else 4) if shape.gated else 2) * shape.intermediate
    if width == FLOAT:
        norms, inputs = (2 if frozen else 6) * FLOAT * shape.hidden, 0.0
    elif _residual(job, split) == HALF:
        norms, inputs = 2 * (FLOAT + (0 if frozen else 2 * HALF)) * shape.hidden, 0.0
    else:
        # The residual stream is float32, and autocast casts the input of each linear layer.
        norms, inputs = (
            (2 if frozen else 4) * FLOAT * shape.hidden,
            (0.0 if frozen else 5.0 * HALF * shape.hidden),
        )
    own = tokens * (norms + inputs + width * (attention + feed) + _adapter(job))
    return own + (load.rows * load.tokens**2 * width if masked else 0)


def _adapter(job: Job) -> float:
    """Bytes per token that one layer's adapter stores: inputs of its first matrices, and dropout masks."""
    if job.adapter is None:
        return 0.0
    if job.adapter.dropout or job.compute_width == HALF:
        return float(job.adapter.inputs * (job.compute_width + (1 if job.adapter.dropout else 0)))
    # Inputs in float32 that several layers share.
    return float((2 * job.shape.hidden + job.shape.intermediate) * FLOAT)


def _backward(job: Job, own: list[Load], split: bool) -> float:
    """Bytes of the gradients of one layer's widest activations and of its largest weight."""
    shape, tokens = job.shape, sum(load.rows * load.tokens for load in own)
    weight = 0 if job.adapter is not None else shape.hidden * shape.intermediate
    wide = tokens * (3 * shape.intermediate * job.compute_width + 2 * shape.hidden * FLOAT)
    return wide + weight * (job.compute_width + (0 if split or job.compute_width == FLOAT else FLOAT))


def _logits(job: Job, load: Load) -> float:
    """Bytes at the label positions at their peak, all in float32.

    Log-probs take three such tensors: the softmax, the gradient of the loss, the gradient of the logits. A
    divergence from the reference takes nine and a mask, at the end of its forward pass.
    """
    return load.labels * job.shape.vocab * (9 * FLOAT + 1.0 if load.whole_distribution else 3.0 * FLOAT)


def _residual(job: Job, split: bool) -> int:
    """Bytes of a number in the residual stream: half precision only if the weights are in half precision."""
    in_half = split or (job.adapter is not None and job.frozen_width < FLOAT)
    return HALF if job.compute_width == HALF and in_half else FLOAT


def _casts(job: Job) -> float:
    """Bytes of the half-precision weights that autocast stores from the forward to the backward pass."""
    if job.compute_width == FLOAT or job.master_width == HALF:
        return 0.0
    if job.adapter is not None:
        return float(job.trained * HALF)
    return float(HALF * (job.shape.layers * job.shape.matrices + job.shape.embedding))


def _head_cast(job: Job) -> float:
    """The part of `_casts` for the output embeddings."""
    return 0.0 if _casts(job) == 0 or job.adapter is not None else float(HALF * job.shape.embedding)
