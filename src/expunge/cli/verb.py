"""The class of verbs, and what they share: the options of a run and its configuration."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.cli.console import setup_logging
from expunge.core.config import Config
from expunge.core.errors import UserError, unknown

log = logging.getLogger(__name__)

OVERRIDES = """\
Overrides follow the options, in hydra's grammar:
  GROUP=CHOICE     trainer=NPO  model=Llama-3.2-1B-Instruct  experiment=unlearn/tofu/default
                   retain=kl  budget=tofu  procedure=task_vector
  KEY=VALUE        forget_split=forget10  trainer.args.learning_rate=5e-5  trainer.method_args.beta=0.1
  ~KEY             deletes a key

`expunge ls` lists the choices of every group, `expunge show NAME` describes one.
"""


@dataclass(frozen=True)
class Verb:
    """One verb of `expunge`.

    Attributes:
        name: the name as typed.
        summary: one line for the list of verbs.
        help: the text below its options.
        run: does the work; it imports heavy packages only when it is called.
        options: adds the verb's own options to those of a run.
        config_name: the default configuration of its runs; None = it reads no configuration and has no
            options of a run.
        adds: overrides that the verb appends to the typed ones.
    """

    name: str
    summary: str
    help: str
    run: Callable[[argparse.Namespace], None]
    options: Callable[[argparse.ArgumentParser], None] | None = None
    config_name: str | None = None
    adds: tuple[str, ...] = ()

    def add_to(self, verbs: Any) -> None:
        """Add the verb's parser to the parser of `expunge`."""
        parser = verbs.add_parser(
            self.name,
            help=self.summary,
            description=self.summary[0].upper() + self.summary[1:] + ".",
            epilog=self.help if self.config_name is None else f"{self.help}\n{OVERRIDES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if self.options is not None:
            self.options(parser)
        if self.config_name is not None:
            run_options(parser, self.config_name)
        parser.set_defaults(adds=self.adds, run=self.run)


class _NoMultirun(argparse.Action):
    """Hydra's `-m`, which is refused."""

    def __call__(self, *_: Any) -> None:
        raise UserError(
            "-m (several runs from one command line) is not part of this version",
            "start one run for each value",
        )


def run_options(parser: argparse.ArgumentParser, config_name: str) -> None:
    """Add the options of a run."""
    parser.add_argument(
        "--config-name",
        default=None,
        metavar="NAME",
        help=f"a YAML file at the top of the configs (default: {config_name})",
    )
    config_dir_option(parser)
    about = "not part of this version: start one run for each value"
    parser.add_argument("-m", "--multirun", action=_NoMultirun, nargs=0, help=about)
    verbose_option(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="GROUP=CHOICE, KEY=VALUE or ~KEY, see below"
    )
    parser.set_defaults(default_config_name=config_name, adds=())


def config_dir_option(parser: argparse.ArgumentParser) -> None:
    """Add `--config-dir`."""
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with your own choices; may be given several times",
    )


def verbose_option(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose`."""
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Overrides may stand between options; argparse alone does not accept this."""
    args, rest = parser.parse_known_args(argv)
    if [item for item in rest if item.startswith("-")] or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def take_verb(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Read the first override as the verb of the run, if it is one, and use the verb's configuration.

    Args:
        args: arguments of a verb that has the options of a run; changed in place.
        names: valid verbs.

    Raises:
        UserError: the first override is a word that is no valid verb.
    """
    word = args.overrides[0] if args.overrides else ""
    if not word or "=" in word or word.startswith("~"):
        return
    if word not in names:
        raise UserError.of([unknown("verb", word, names)])
    verb = next(verb for verb in args.verbs if verb.name == word)
    args.overrides = args.overrides[1:]
    args.default_config_name, args.adds = verb.config_name, verb.adds


def config_of(args: argparse.Namespace) -> Config:
    """The validated configuration of a command line.

    Raises:
        UserError: all its faults together.
    """
    from expunge.config.validate import load_config

    name = args.config_name or args.default_config_name
    return load_config(name, [*args.overrides, *args.adds], args.config_dir)


def begin(args: argparse.Namespace) -> Config:
    """Begin a run: compose and validate its configuration, set up the log, and log the notices."""
    cfg = config_of(args)
    setup_logging(args.verbose)
    for notice in cfg.notices:
        log.info(notice)
    return cfg
