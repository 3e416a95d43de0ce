"""Time and transfer of an optimizer step, by a simple model: the longer of computing and sending."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.core.job import Job

FLOAT = 4
LATENCY = 0.05
"""Seconds a step that neither computing nor sending explains: launches, the optimizer, reading rows."""


@dataclass(frozen=True)
class Speed:
    """What the machines do.

    Attributes:
        flops: floating-point operations a second that one rank reaches in a training.
        inside: bytes a second that a rank sends to others of its node.
        across: bytes a second that a rank sends to other nodes.
        node: ranks of a node.
        source: "assumed" or "measured", of `flops`.
    """

    flops: float = 0.35 * 989e12
    inside: float = 400e9
    across: float = 50e9
    node: int = 8
    source: str = "assumed"


@dataclass(frozen=True)
class Cost:
    """What one optimizer step costs each rank.

    Attributes:
        operations: floating-point operations.
        sent: bytes.
        seconds: of the step.
    """

    operations: float
    sent: float
    seconds: float


def cost(job: Job, ranks: int, speed: Speed) -> Cost:
    """The cost of one optimizer step on each of some ranks.

    For each token a weight takes 2 operations in the forward pass, 2 for the gradient of its input and 2 for
    its own gradient. Checkpointing takes 2 more, a live reference 2. DDP sends each gradient twice. Sharding
    gathers the weights before both passes and scatters the gradients after them.

    Args:
        job: the training.
        ranks: W.
        speed: of the machines.
    """
    weights, tokens = job.trained + job.frozen, 0.0
    operations = 0.0
    for load in job.loads:
        tokens = float(load.rows * load.tokens * job.micro_batches)
        own = 2 * weights + 2 * weights + 2 * job.trained + (2 * weights if job.checkpointing else 0)
        operations += tokens * (own * load.own + 2 * weights * load.reference)
    others = (ranks - 1) / ranks
    if job.sharded(ranks):
        passes = job.micro_batches * len(job.groups)
        live = job.micro_batches * sum(load.reference for load in job.loads) * (job.reference == "frozen")
        gathered = 2 * job.compute_width * weights + FLOAT * job.trained
        sent = others * (passes * gathered + live * job.compute_width * weights)
    else:
        sent = others * 2 * job.master_width * job.trained
    bandwidth = speed.inside if ranks <= speed.node else speed.across
    return Cost(operations, sent, max(operations / speed.flops, sent / bandwidth) + LATENCY)
