"""Verbs to pipelines. A `UserError` becomes a message and exit code 2; nothing heavy is imported before a run is known to be sound."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from expunge.cli.console import print_faults, print_table, setup_logging
from expunge.cli.parser import ALTERNATES_OPTIONS, CONFIG_NAMES, build_parser, script_parser
from expunge.core.config import Config
from expunge.core.errors import UserError

log = logging.getLogger(__name__)

FAULTY = 2
INTERRUPTED = 130
SCORE = "expunge.pipelines.score"
SCORING = (
    "difficulty.order=none",
    "difficulty.select=null",
    "difficulty.k=null",
    "difficulty.select_by=null",
)
"""What makes a run's command line one that scores the rows."""
PIPELINES = {
    "finetune": "expunge.pipelines.train",
    "unlearn": "expunge.pipelines.unlearn",
    "eval": "expunge.pipelines.evaluate",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `expunge`.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code: 0, 2 for something the user can mend, 130 after ctrl-C.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    _take_rest(parser, args, rest)
    verbs: dict[str, Callable[[argparse.Namespace], None]] = {
        "ls": _ls,
        "show": _show,
        "demo": _demo,
        "validate": _validate,
        "alternates": _alternates,
        "score": _score,
    }
    return guarded(lambda: verbs.get(args.verb, _run)(args))


def script(prog: str, config_name: str, argv: Sequence[str] | None = None) -> int:
    """The command lines `python src/train.py ...` and `python src/eval.py ...`; which pipeline runs, the config's `mode` says.

    Args:
        prog: the script's name, for messages.
        config_name: the config where `--config-name` is not given.
        argv: the arguments; those of the process where None.

    Returns:
        The exit code, as `main`.
    """
    parser = script_parser(prog, config_name)
    args, rest = parser.parse_known_args(argv)
    _take_rest(parser, args, rest)
    return guarded(lambda: _run(args))


def guarded(action: Callable[[], None]) -> int:
    """Do `action`; turn what the user can mend, and ctrl-C, into a message and an exit code."""
    try:
        action()
    except UserError as error:
        print_faults(error)
        return FAULTY
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from the newest complete checkpoint"
        print(f"\n{message}, where trainer.args.save_strategy has let it write one", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing is left to be told, and python must not try to flush at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _take_rest(parser: argparse.ArgumentParser, args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Overrides between which options stand land in `rest`; unknown options do too, and are refused."""
    if [item for item in rest if item.startswith("-")] or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]


def _load(args: argparse.Namespace) -> Config:
    from expunge.config.validate import load_config

    if args.multirun:
        raise UserError(
            "-m (several runs from one command line) is not part of this version",
            "start one run for each value",
        )
    return load_config(args.config_name or args.default_config_name, args.overrides, args.config_dir)


def _run(args: argparse.Namespace) -> None:
    cfg = _load(args)
    setup_logging(args.verbose)
    for notice in cfg.notices:
        log.info(notice)
    carry_out(cfg)


def carry_out(cfg: Config) -> None:
    """Run the pipeline of a configuration, and print what its evaluation found."""
    importlib.import_module(PIPELINES[cfg.get("mode")]).run(cfg)
    from expunge.lm import runtime
    from expunge.report.outcome import print_outcome

    if runtime.is_primary():
        print_outcome(Path(cfg.get("paths.output_dir")), cfg.section("eval"))


def _validate(args: argparse.Namespace) -> None:
    from expunge.config.describe import describe

    if args.overrides and args.overrides[0] in CONFIG_NAMES:
        verb = args.overrides.pop(0)
        args.default_config_name = CONFIG_NAMES[verb]
        args.overrides = [*args.overrides, *(SCORING if verb == "score" else ())]
    cfg = _load(args)
    facts = describe(cfg)
    print(facts.pop("config"))
    for notice in cfg.notices:
        print(f"# note: {notice}")
    for name, value in facts.items():
        print(f"# {name}: {value}")


def _ls(args: argparse.Namespace) -> None:
    from expunge.config.listing import entries, kinds
    from expunge.core.source import make_importable

    make_importable(args.config_dir)
    if args.kind is None:
        print_table(
            ("KIND", "CHOICES"),
            [(kind, str(len(entries(kind, args.config_dir)))) for kind in kinds(args.config_dir)],
        )
        return
    print_table(
        ("NAME", "WHAT IT IS"), [(entry.name, entry.summary) for entry in entries(args.kind, args.config_dir)]
    )


def _show(args: argparse.Namespace) -> None:
    from expunge.config.listing import show
    from expunge.core.source import make_importable

    make_importable(args.config_dir)
    print(show(args.name, args.config_dir))


def _alternates(args: argparse.Namespace) -> None:
    cfg = _load(args)
    setup_logging(args.verbose)
    settings = {name: getattr(args, name) for name in ALTERNATES_OPTIONS}
    importlib.import_module("expunge.pipelines.alternates").run(cfg, Path(args.output), **settings)


def _score(args: argparse.Namespace) -> None:
    # The command line of the run that will use the scores makes them too: what it does with them is left
    # aside.
    args.overrides = [*args.overrides, *SCORING]
    cfg = _load(args)
    setup_logging(args.verbose)
    for notice in cfg.notices:
        log.info(notice)
    importlib.import_module(SCORE).run(cfg)


def _demo(args: argparse.Namespace) -> None:
    setup_logging(args.verbose)
    importlib.import_module("expunge.pipelines.demo").run(output_dir=Path(args.output_dir), seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
