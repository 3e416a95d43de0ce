"""Time and transfer of an optimizer step, by a simple model: the longer of computing and sending."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from expunge.core.job import Job

FLOAT = 4


class Figure(NamedTuple):
    """A number, and where it comes from: "assumed", "given" or "measured ..."."""

    value: float
    source: str = "assumed"


FLOPS = Figure(0.35 * 989e12)
INSIDE, ACROSS, LATENCY = Figure(400e9), Figure(50e9), Figure(0.05)


@dataclass(frozen=True)
class Speed:
    """The speed of the machines.

    Attributes:
        flops: floating-point operations per second that one rank reaches in a training.
        inside: bytes per second that a rank sends to other ranks of its node.
        across: bytes per second that a rank sends to other nodes.
        latency: seconds of a step for everything else: kernel launches, the optimizer, loading rows.
    """

    flops: Figure = FLOPS
    inside: Figure = INSIDE
    across: Figure = ACROSS
    latency: Figure = LATENCY


@dataclass(frozen=True)
class Cost:
    """The cost of one optimizer step on each rank.

    Attributes:
        operations: number of floating-point operations.
        sent: number of bytes that the rank sends.
        seconds: time of the step.
    """

    operations: float
    sent: float
    seconds: float


def cost(job: Job, ranks: int, speed: Speed) -> Cost:
    """The cost of one optimizer step.

    For each token a weight takes 2 operations in the forward pass, 2 for the gradient of its input and 2 for
    its own gradient. Checkpointing takes 2 more, a live reference 2. DDP sends each gradient twice. Sharding
    gathers the weights before both passes and scatters the gradients after them. Between nodes, hsdp sends
    only each rank's part of the gradients, twice per optimizer step.

    Args:
        job: the training.
        ranks: W.
        speed: speed of the machines.
    """
    weights, operations, parts = job.trained + job.frozen, 0.0, job.parts(ranks)
    for load in job.loads:
        own = 4 * weights + 2 * job.trained + (2 * weights if job.checkpointing else 0)
        tokens = float(load.rows * load.tokens * job.micro_batches)
        operations += tokens * (own * load.own + 2 * weights * load.reference)
    # Each part of the weights is on so many ranks, which exchange their gradients.
    copies = ranks // parts
    passes = job.micro_batches * len(job.passes)
    live = job.micro_batches * sum(load.reference for load in job.loads) * (job.reference == "frozen")
    gathered = passes * (2 * job.compute_width * weights + FLOAT * job.trained)
    split = (parts - 1) / parts * (gathered + live * job.compute_width * weights)
    reduced = (copies - 1) / copies * 2 * job.master_width * job.trained / parts
    inside, across = speed.inside.value, speed.across.value
    seconds = split / (inside if parts <= job.node else across)
    seconds += reduced / (inside if ranks <= job.node else across)
    return Cost(
        operations, split + reduced, max(operations / speed.flops.value, seconds) + speed.latency.value
    )
