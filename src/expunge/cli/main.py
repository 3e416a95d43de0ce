"""The command `expunge`, and the field's scripts. A `UserError` becomes a message and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import expunge
from expunge.cli.exit_code import ExitCode
from expunge.cli.verb import OVERRIDES, parsed, run_options
from expunge.cli.verbs import VERBS
from expunge.cli.verbs.run import run


def main(argv: Sequence[str] | None = None) -> int:
    """The command `expunge`.

    Returns:
        The exit code: 0, 2 for an error that the user can fix, 75 after SIGUSR2, 130 after Ctrl-C.
    """
    with ExitCode() as code:
        args = parsed(_parser(), argv)
        args.run(args)
    return code.value


def script(prog: str, config_name: str, argv: Sequence[str] | None = None) -> int:
    """The command lines `python src/train.py ...` and `python src/eval.py ...`; the config's `mode` decides.

    Returns:
        The exit code, as for `main`.
    """
    parser = argparse.ArgumentParser(
        prog=prog, epilog=OVERRIDES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run_options(parser, config_name)
    with ExitCode() as code:
        run(parsed(parser, argv))
    return code.value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="expunge",
        description="Make a causal language model forget chosen training data, "
        "and measure what was forgotten and what it cost.",
        epilog="`expunge VERB --help` describes a verb. Start with `expunge demo`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"expunge {expunge.__version__}")
    # `validate` checks the command lines of the other verbs.
    parser.set_defaults(verbs=VERBS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_to(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
