"""`expunge plan`: memory, time and bytes of a training by the number of GPUs, before any is rented."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from expunge.cli.verb import Verb, config_of
from expunge.core.errors import UserError

HELP = """\
The first word may be unlearn or train; the overrides are those of the run. It needs no GPU and downloads no
weights. It reads config.json, and the tokenizer and the rows for their real lengths, if they can be found.

Examples:
  expunge plan unlearn experiment=unlearn/tofu/default trainer=NPO task_name=npo --gpu-memory 80
  expunge plan train experiment=finetune/tofu/default task_name=full --engine fsdp2 --ranks 8,64
"""
CONFIGS = {"unlearn": "unlearn.yaml", "train": "train.yaml"}


def run(args: argparse.Namespace) -> None:
    """Print the plan, from one process."""
    if args.overrides and args.overrides[0] in CONFIGS:
        args.default_config_name = CONFIGS[args.overrides.pop(0)]
    cfg = config_of(args)
    ranks = _ranks(args.ranks)
    for name in ("gpu_memory", "tflops", "inside", "across"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name):g}", "give a number above 0")
    if os.environ.get("RANK", "0") != "0":
        return
    from expunge.core.step_cost import Speed
    from expunge.pipelines import plan
    from expunge.report.plan_table import plan_text

    speed = Speed()
    if args.tflops is not None:
        speed = replace(speed, flops=args.tflops * 1e12, source="given")
    if args.inside is not None:
        speed = replace(speed, inside=args.inside * 1e9)
    if args.across is not None:
        speed = replace(speed, across=args.across * 1e9)
    found = plan.run(
        cfg,
        gpu_memory=args.gpu_memory,
        ranks=ranks,
        engine=args.engine,
        formulas=args.formulas,
        measure=args.measure,
        speed=speed,
    )
    print(plan_text(found))


def options(parser: argparse.ArgumentParser) -> None:
    """What a plan may be told of the machines."""
    about = "memory of one GPU; default: that of the GPU here, else 80 is assumed"
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help=about)
    about = "numbers of GPUs, with commas (default: 1,2,4,8,16,64 and those of this launch)"
    parser.add_argument("--ranks", metavar="W,W,...", help=about)
    about = "how weights are placed on several GPUs (default: as the configuration says, else ddp)"
    parser.add_argument("--engine", choices=("ddp", "fsdp2", "fsdp2_offload"), help=about)
    parser.add_argument(
        "--tflops", type=float, metavar="N", help="what a GPU reaches in training (assumed: 346)"
    )
    parser.add_argument(
        "--inside", type=float, metavar="GB/S", help="a GPU's bandwidth in its node (assumed: 400)"
    )
    parser.add_argument("--across", type=float, metavar="GB/S", help="and to other nodes (assumed: 50)")
    parser.add_argument(
        "--measure", action="store_true", help="time 3 real steps on this machine, on random weights"
    )
    parser.add_argument(
        "--formulas", action="store_true", help="memory by closed formulas alone: a second, less exact"
    )


def _ranks(text: str | None) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",")}) if text else []
    except ValueError:
        found = [0]
    if any(count < 1 for count in found):
        raise UserError(f"--ranks is {text!r}", "give whole numbers above 0 with commas, such as 1,8,64")
    return found


PLAN = Verb(
    "plan",
    "say what memory and time a training needs on 1 to 64 GPUs",
    HELP,
    run,
    options=options,
    config_name="unlearn.yaml",
)
