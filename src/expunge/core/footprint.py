"""The most memory that one rank of a training holds at once, by formulas: no weights, no torch.

The formulas count what autograd stores for the backward pass of a decoder with RMS norms, rotary attention in
one kernel and a gated feed-forward part. For such models they differ from `models.memory_tracker`, which
follows the real step, by 15 % at most (tested). For other kinds of layers the difference is larger.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from expunge.core.job import OFFLOADED, Job, Load

HALF, FLOAT = 2, 4
NAMES = {"reference": "frozen reference", "logits": "logits at labels", "unsharded": "largest unit unsharded"}


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank at the moment of its peak, by what they are for.

    Attributes:
        weights: of the model.
        gradients: of the trained weights, with the buckets in which DDP exchanges them.
        optimizer: moments and other states.
        reference: the model before unlearning.
        activations: what the backward pass needs, and weights in half precision that autocast made.
        logits: at label positions, with their gradients.
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
        """All parts."""
        return sum(float(getattr(self, field.name)) for field in fields(self))

    def named(self) -> dict[str, float]:
        """Bytes of the parts that there are, by the names that users read."""
        found = {
            NAMES.get(field.name, field.name): float(getattr(self, field.name)) for field in fields(self)
        }
        return {name: size for name, size in found.items() if size > 0}


def peak(job: Job, ranks: int = 1) -> Parts:
    """The memory of one rank at its peak, which is the largest of a few moments of a step.

    Args:
        job: the training.
        ranks: W.

    Returns:
        Bytes by part.
    """
    share = 1 / ranks if job.sharded(ranks) else 1.0
    gradients = job.trained * job.master_width * share
    buckets = job.trained * job.master_width if job.engine == "ddp" and ranks > 1 else 0.0
    moments = [
        moment
        for number, group in enumerate(job.groups)
        for moment in _pass(job, ranks, group, gradients if number or job.micro_batches > 1 else 0.0)
    ]
    moments += [Parts(gradients=gradients, activations=job.trained * job.step_width * share)]
    largest = max(moments, key=lambda moment: moment.total)
    offloaded = job.engine == OFFLOADED and ranks > 1
    return Parts(
        weights=0.0
        if offloaded
        else (job.trained * job.master_width + job.frozen * job.frozen_width) * share,
        gradients=buckets + (0.0 if offloaded else largest.gradients),
        optimizer=0.0 if offloaded else job.trained * job.moments_width * share,
        reference=reference_bytes(job, ranks),
        activations=largest.activations,
        logits=largest.logits,
        unsharded=largest.unsharded,
    )


def reference_bytes(job: Job, ranks: int = 1) -> float:
    """Bytes of the weights that a reference keeps besides those in training.

    A frozen copy keeps its linear layers in the dtype that is computed in, an embedding that is an output
    layer's as well in float32.
    """
    if job.reference == "frozen_adapter" and job.adapter is not None:
        return float(job.trained * FLOAT)
    if job.reference != "frozen":
        return 0.0
    whole = job.trained + job.frozen
    in_float = job.shape.embedding
    copied = (whole - in_float) * min(job.compute_width, job.master_width) + in_float * job.master_width
    return copied / ranks if job.sharded(ranks) else float(copied)


def _pass(job: Job, ranks: int, group: tuple[Load, ...], present: float) -> list[Parts]:
    """The moments of a pass that can be the peak; `present` = bytes of gradients before the pass."""
    shape, split = job.shape, job.sharded(ranks)
    share = 1 / ranks if split else 1.0
    gradients = job.trained * job.master_width * share
    own = [load for load in group if load.own]
    kept = sum(kept_bytes(job, load, split) for load in own)
    logits = sum(_logits(job, load) for load in group)
    # The gradient of the output embeddings, in float32 and in the compute dtype.
    width = HALF if job.compute_width == HALF else 0
    head = 0.0 if job.adapter is not None else float(shape.embedding * (FLOAT + width))
    fading = sum(load.labels for load in own) * shape.vocab * float(job.compute_width)
    # One layer in the backward pass: what it computes again, and gradients.
    again = sum(layer_bytes(job, load, split) for load in own) if job.checkpointing else 0.0
    inside = again + _backward(job, own, split)
    embedding = 0.0 if job.adapter is not None else float(shape.embedding * FLOAT)
    if split:
        unit, block = job.compute_width * float(max(shape.embedding, shape.matrices)), float(shape.matrices)
        # The output embeddings are gathered again once the logits have their gradient, in both widths.
        leaving = fading * 3 if job.compute_width == HALF else fading
        # The gradient of a gathered unit; beside a unit the next layer is gathered already.
        made = 0.0 if job.adapter is not None else unit
        gathered = unit + job.compute_width * block
        # Weights as gathered and as copied out of that, those of the next layer too; gradients as exchanged.
        in_layer = (4 * job.compute_width + (0 if job.adapter is not None else FLOAT)) * block
        grown = max(present, embedding * share)
        return [
            Parts(gradients=present, activations=kept, logits=logits),
            Parts(gradients=grown, activations=kept + made, logits=leaving, unsharded=gathered),
            Parts(gradients=grown, activations=kept + inside, unsharded=in_layer),
            Parts(gradients=gradients, activations=inside + 2 * made, unsharded=gathered),
        ]
    casts, in_head = _casts(job), _head_cast(job)
    # With checkpointing, what autocast made of the layers' weights is gone when the backward pass begins.
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
    """Bytes that a side's forward pass keeps for its backward pass, the vocabulary apart."""
    shape, tokens = job.shape, load.rows * load.tokens
    residual = _residual(job, split)
    # Embedding, last norm and the table of rotations.
    ends = tokens * (3 * shape.hidden * FLOAT + 2 * shape.head_dim * FLOAT)
    mask = load.rows * load.tokens**2 if load.padded and job.attention_mask else 0
    if job.checkpointing:
        return ends + mask + shape.layers * tokens * shape.hidden * residual
    return ends + mask + shape.layers * layer_bytes(job, load, split)


def layer_bytes(job: Job, load: Load, split: bool = False) -> float:
    """Bytes that one layer keeps of a side's forward pass."""
    shape, width, tokens = job.shape, job.compute_width, load.rows * load.tokens
    masked = load.padded and job.attention_mask
    # Keys and values are repeated for every head where attention takes a mask.
    keys = shape.queries if masked else shape.keys
    attention = 2 * shape.queries + 2 * keys
    # Frozen layers keep neither their inputs nor what their norms are multiplied with.
    frozen = job.adapter is not None
    feed = ((3 if frozen else 4) if shape.gated else 2) * shape.intermediate
    if width == FLOAT:
        norms, inputs = (2 if frozen else 6) * FLOAT * shape.hidden, 0.0
    elif _residual(job, split) == HALF:
        norms, inputs = 2 * (FLOAT + (0 if frozen else 2 * HALF)) * shape.hidden, 0.0
    else:
        # The residual stream is float32, and autocast makes each linear layer an input of its own.
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
    """Bytes of gradients of activations inside one layer, at the widest place, and of its largest weight."""
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
    """Bytes of a number in the residual stream: half precision only where the weights themselves are."""
    in_half = split or (job.adapter is not None and job.frozen_width < FLOAT)
    return HALF if job.compute_width == HALF and in_half else FLOAT


def _casts(job: Job) -> float:
    """Bytes of the weights that autocast keeps in half precision from forward to backward pass."""
    if job.compute_width == FLOAT or job.master_width == HALF:
        return 0.0
    if job.adapter is not None:
        return float(job.trained * HALF)
    return float(HALF * (job.shape.layers * job.shape.matrices + job.shape.embedding))


def _head_cast(job: Job) -> float:
    """Of these, the output embeddings'."""
    return 0.0 if _casts(job) == 0 or job.adapter is not None else float(HALF * job.shape.embedding)
