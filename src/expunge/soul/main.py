"""The SOUL family's scripts: their command lines are translated and use the same pipelines as `expunge`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from expunge.cli.console import setup_logging
from expunge.cli.exit_code import ExitCode
from expunge.cli.verbs.run import pipeline_of, print_results
from expunge.cli.verbs.score import SCORE
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.preemption import preemptible
from expunge.soul.translate import SoulCommand, parser_of, translate

log = logging.getLogger(__name__)


def script(name: str, argv: Sequence[str] | None = None) -> int:
    """The command lines `python exec/unlearn_model.py ...` and `python exec/Fine_tune_{tofu,hp,wmdp}.py ...`.

    Returns:
        The exit code: 0, 2 for an error that the user can fix, 75 after SIGUSR2, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        parser_of(name).print_help()
        return 0
    with ExitCode() as code:
        command = translate(words, name)
        cfg = _config_of(command)
        setup_logging()
        log.info("the same as: expunge %s %s", command.verb, " ".join(command.overrides))
        for notice in (*command.notices, *cfg.notices):
            log.info(notice)
        if command.verb == SCORE.name:
            from expunge.pipelines import score

            score.run(cfg)
        else:
            with preemptible():
                pipeline_of(cfg)(cfg)
            print_results(cfg)
    return code.value


def _config_of(command: SoulCommand) -> Config:
    """The configuration of a command line; its faults name the typed flags."""
    from expunge.config.validate import load_config

    adds = SCORE.adds if command.verb == SCORE.name else ()
    try:
        return load_config(command.config_name, [*command.overrides, *adds])
    except UserError as error:
        raise command.in_flags(error) from error
