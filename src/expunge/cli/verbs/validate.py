"""`expunge validate`: check a command line, and print what it would run."""

from __future__ import annotations

import argparse

from expunge.cli.verb import Verb, config_of, take_verb


def run(args: argparse.Namespace) -> None:
    """Print the resolved configuration and the facts about its run; the first word may be a verb."""
    from expunge.config.describe import describe

    not_runs = (VALIDATE.name, "plan")
    take_verb(args, [verb.name for verb in args.verbs if verb.config_name and verb.name not in not_runs])
    cfg = config_of(args)
    facts = describe(cfg)
    print(facts.pop("config"))
    for notice in cfg.notices:
        print(f"# note: {notice}")
    for name, value in facts.items():
        print(f"# {name}: {value}")


VALIDATE = Verb(
    "validate",
    "check a command line and print what it would run",
    "Example:\n"
    "  expunge validate unlearn experiment=unlearn/tofu/default trainer=NPO forget_split=forget10"
    " task_name=npo\n",
    run,
    config_name="unlearn.yaml",
)
