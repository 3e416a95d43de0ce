"""`expunge demo`: all steps on the embedded benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from expunge.cli.console import setup_logging
from expunge.cli.verb import Verb, verbose_option


def run(args: argparse.Namespace) -> None:
    """Train, unlearn, evaluate and compare."""
    setup_logging(args.verbose)
    from expunge.pipelines import demo

    demo.run(output_dir=Path(args.output_dir), seed=args.seed)


def _options(parser: argparse.ArgumentParser) -> None:
    about = "folder for models and results (default: %(default)s)"
    parser.add_argument("--output-dir", default=".demo", metavar="DIR", help=about)
    about = "seed of all random numbers (default: %(default)s)"
    parser.add_argument("--seed", type=int, default=0, help=about)
    verbose_option(parser)


DEMO = Verb(
    "demo",
    "run all steps on a small example: train, unlearn in three ways, evaluate, compare",
    "It needs neither a GPU nor a network.",
    run,
    _options,
)
