"""`expunge ls` and `expunge show`: list the choices, and describe one choice."""

from __future__ import annotations

import argparse

from expunge.cli.console import print_table
from expunge.cli.verb import Verb, config_dir_option


def run_ls(args: argparse.Namespace) -> None:
    """Print the kinds of choices, or the choices of one kind."""
    from expunge.config.listing import entries, kinds
    from expunge.core.source import make_importable

    make_importable(args.config_dir)
    if args.kind is None:
        counts = [(kind, str(len(entries(kind, args.config_dir)))) for kind in kinds(args.config_dir)]
        print_table(("KIND", "CHOICES"), counts)
        return
    found = [(entry.name, entry.summary) for entry in entries(args.kind, args.config_dir)]
    print_table(("NAME", "WHAT IT IS"), found)


def run_show(args: argparse.Namespace) -> None:
    """Print the description of one choice."""
    from expunge.config.listing import show
    from expunge.core.source import make_importable

    make_importable(args.config_dir)
    print(show(args.name, args.config_dir))


def _ls_options(parser: argparse.ArgumentParser) -> None:
    about = "methods, procedures, metrics, models, experiments, ..."
    parser.add_argument("kind", nargs="?", metavar="KIND", help=about)
    config_dir_option(parser)


def _show_options(parser: argparse.ArgumentParser) -> None:
    about = "a method, procedure, metric, model, experiment, ..."
    parser.add_argument("name", metavar="NAME", help=about)
    config_dir_option(parser)


LS = Verb("ls", "list choices", "Without KIND: list the kinds of choices.", run_ls, _ls_options)
SHOW = Verb("show", "describe one choice", "Example:\n  expunge show NPO\n", run_show, _show_options)
