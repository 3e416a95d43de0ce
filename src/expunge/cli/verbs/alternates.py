"""`expunge alternates`: have the model write other answers to the forget questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from expunge.cli.verb import Verb, begin

SETTINGS = (
    "count", "temperature", "max_new_tokens", "prompt",
    "novice_of", "strength", "lead", "expert_prompt", "novice_prompt",
)  # fmt: skip
"""The options that the pipeline takes."""


def run(args: argparse.Namespace) -> None:
    """Write the answers to the file `--output`."""
    cfg = begin(args)
    from expunge.pipelines import alternates

    alternates.run(cfg, Path(args.output), **{name: getattr(args, name) for name in SETTINGS})


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, metavar="FILE", help="the JSON file to write")
    add("--count", type=int, metavar="N", help="answers a row (default: 5; with --novice-of 1)")
    add("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: %(default)s)")
    about = "of an answer (default: %(default)s)"
    add("--max-new-tokens", type=int, default=200, metavar="N", help=about)
    add("--prompt", metavar="TEXT", help="what is asked, with {question} and {answer} in it")
    about = (
        "for ELM: change the subject and write as one who knows nothing of this, "
        "away from how an expert would"
    )
    add("--novice-of", metavar="CONCEPT", help=about)
    about = "how far from expert to novice, with --novice-of (default: 3)"
    add("--strength", type=float, metavar="S", help=about)
    about = "the sentence that changes the subject (default: one of four in turn)"
    add("--lead", metavar="TEXT", help=about)
    for who in ("expert", "novice"):
        about = "beginning of a text by one, with {concept} (default: ELM's)"
        add(f"--{who}-prompt", metavar="TEXT", help=about)


ALTERNATES = Verb(
    "alternates",
    "have the model write other answers to the forget questions, for AltPO and ELM",
    "Examples, for AltPO and for ELM:\n"
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates"
    " --output saves/alternates10.json\n"
    "      model.model_args.pretrained_model_name_or_path=saves/finetune/full\n"
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates"
    " --output saves/novice10.json\n"
    "      model.model_args.pretrained_model_name_or_path=saves/finetune/full"
    " --novice-of 'invented authors and their books'\n",
    run,
    _options,
    config_name="unlearn.yaml",
)
