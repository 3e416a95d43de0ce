"""`expunge plan`: memory, time and bytes of a training for several numbers of GPUs, before any is rented."""

from __future__ import annotations

import argparse
import math
import os
from typing import get_args

from expunge.cli.console import setup_logging
from expunge.cli.verb import Verb, config_of, take_verb
from expunge.core.errors import UserError
from expunge.core.footprint import GIB
from expunge.core.job import Placement

HELP = """\
The first word may be unlearn or train; the overrides are those of the run. It needs no GPU and downloads no
weights. It reads config.json, and the tokenizer and the rows for their real lengths, if they can be found.

Engines: ddp (whole weights on each GPU), fsdp2 (weights split over all GPUs), hsdp (weights split inside a
node and replicated across nodes), fsdp2_offload (as fsdp2, with the weights in the memory of the CPU).

Examples:
  expunge plan unlearn experiment=unlearn/tofu/default trainer=NPO task_name=npo --gpu-memory 80
  expunge plan train experiment=finetune/tofu/default task_name=full --engine fsdp2 --ranks 8,64
"""
UNITS = {"tflops": ("flops", 1e12), "inside": ("inside", 1e9), "across": ("across", 1e9)}
"""Option -> the field of `Speed`, and the size of the option's unit."""


def run(args: argparse.Namespace) -> None:
    """Print the plan, from one process."""
    take_verb(args, ("unlearn", "train"))
    if args.verbose:
        setup_logging(verbose=True)
    ranks = _ranks(args.ranks)
    for name in ("gpu_memory", *UNITS, "node"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}", "give a number above 0")
    cfg = config_of(args)
    if os.environ.get("RANK", "0") != "0":
        return
    from expunge.core.step_cost import Figure, Speed
    from expunge.pipelines import plan
    from expunge.report.plan_table import plan_text

    given = {
        field: Figure(getattr(args, name) * unit, "given")
        for name, (field, unit) in UNITS.items()
        if getattr(args, name) is not None
    }
    found = plan.run(
        cfg,
        limit=None if args.gpu_memory is None else Figure(args.gpu_memory * GIB, "given"),
        ranks=ranks,
        engine=args.engine,
        node=args.node,
        formulas=args.formulas,
        measure=args.measure,
        speed=Speed(**given),
    )
    print(plan_text(found))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the machines."""
    about = "memory of one GPU (default: of the GPU of this machine, else 80 is assumed)"
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help=about)
    about = "numbers of GPUs (default: 1,2,4,8,16,64 and the number of this launch)"
    parser.add_argument("--ranks", metavar="W,W,...", help=about)
    about = "how weights are placed on several GPUs (default: as in the configuration, else ddp)"
    parser.add_argument("--engine", choices=get_args(Placement), help=about)
    about = "GPUs of a node (default: %(default)s)"
    parser.add_argument("--node", type=int, default=8, metavar="N", help=about)
    about = "TFLOP/s that a GPU reaches in training (assumed: 346)"
    parser.add_argument("--tflops", type=float, metavar="N", help=about)
    about = "bandwidth of a GPU inside its node (assumed: 400)"
    parser.add_argument("--inside", type=float, metavar="GB/S", help=about)
    about = "bandwidth of a GPU to other nodes (assumed: 50)"
    parser.add_argument("--across", type=float, metavar="GB/S", help=about)
    about = "time 3 real steps on this machine, with random weights; replaces --tflops"
    parser.add_argument("--measure", action="store_true", help=about)
    about = "memory by closed formulas only: takes a second, less exact"
    parser.add_argument("--formulas", action="store_true", help=about)


def _ranks(text: str | None) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",")}) if text is not None else []
    except ValueError:
        found = [0]
    if any(count < 1 for count in found):
        raise UserError(f"--ranks is {text!r}", "give whole numbers above 0, such as 1,8,64")
    return found


PLAN = Verb(
    "plan",
    "compute the memory and time of a training on 1 to 64 GPUs",
    HELP,
    run,
    options=options,
    config_name="unlearn.yaml",
)
