"""`expunge alternates`: the model writes other answers to the forget questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from expunge.cli.verb import Verb, begin

SETTINGS = (
    "count",
    "temperature",
    "max_new_tokens",
    "prompt",
    "novice_of",
    "strength",
    "lead",
    "expert_prompt",
    "novice_prompt",
)
"""The options of the pipeline."""


def run(args: argparse.Namespace) -> None:
    """Write the answers to the file of `--output`."""
    cfg = begin(args)
    from expunge.pipelines import alternates

    alternates.run(cfg, Path(args.output), **{name: getattr(args, name) for name in SETTINGS})


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, metavar="FILE", help="the JSON file to write")
    add("--count", type=int, metavar="N", help="answers per row (default: 5; with --novice-of: 1)")
    about = "temperature of sampling (default: %(default)s)"
    add("--temperature", type=float, default=1.0, metavar="T", help=about)
    about = "maximum number of tokens per answer (default: %(default)s)"
    add("--max-new-tokens", type=int, default=200, metavar="N", help=about)
    add("--prompt", metavar="TEXT", help="the prompt, with {question} and {answer} in it")
    about = "for ELM: change the subject, and write like a novice of CONCEPT instead of an expert"
    add("--novice-of", metavar="CONCEPT", help=about)
    about = "strength of the shift from expert to novice, with --novice-of (default: 3)"
    add("--strength", type=float, metavar="S", help=about)
    about = "the sentence that changes the subject (default: four sentences in turn)"
    add("--lead", metavar="TEXT", help=about)
    for who in ("expert", "novice"):
        about = f"prompt for the text of the {who}, with {{concept}} in it (default: ELM's)"
        add(f"--{who}-prompt", metavar="TEXT", help=about)


ALTERNATES = Verb(
    "alternates",
    "write other answers to the forget questions with the model, for AltPO and ELM",
    "Examples, for AltPO and for ELM:\n"
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates\n"
    "      --output saves/alternates10.json"
    " model.model_args.pretrained_model_name_or_path=saves/finetune/full\n"
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates\n"
    "      --output saves/novice10.json --novice-of 'invented authors and their books'\n"
    "      model.model_args.pretrained_model_name_or_path=saves/finetune/full\n",
    run,
    _options,
    config_name="unlearn.yaml",
)
