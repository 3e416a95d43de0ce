"""The options of every verb."""

from __future__ import annotations

import argparse

import expunge

CONFIG_NAMES = {
    "train": "train.yaml",
    "unlearn": "unlearn.yaml",
    "eval": "eval.yaml",
    "score": "unlearn.yaml",
}

OVERRIDES = """\
Behind the options stand overrides, in hydra's grammar:
  GROUP=CHOICE     trainer=NPO  model=Llama-3.2-1B-Instruct  experiment=unlearn/tofu/default  retain=kl  budget=tofu  procedure=task_vector
  KEY=VALUE        forget_split=forget10  trainer.args.learning_rate=5e-5  trainer.method_args.beta=0.1
  ~KEY             takes a key away

`expunge ls` lists the choices of every group, `expunge show NAME` tells about one.
"""
EXAMPLES = {
    "train": "  expunge train experiment=finetune/tofu/default model=Llama-3.2-1B-Instruct task_name=full\n",
    "unlearn": "  expunge unlearn experiment=unlearn/tofu/default trainer=NPO forget_split=forget10 task_name=npo\n",
    "eval": (
        "  expunge eval experiment=eval/tofu/default forget_split=forget10 task_name=npo_eval\n"
        "      model.model_args.pretrained_model_name_or_path=saves/unlearn/npo retain_logs_path=saves/eval/retain/TOFU_EVAL.json\n"
    ),
}
ALTERNATES = (
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates --output saves/alternates10.json\n"
    "      model.model_args.pretrained_model_name_or_path=saves/finetune/full\n"
    "  expunge alternates experiment=unlearn/tofu/default forget_split=forget10 task_name=alternates --output saves/novice10.json\n"
    "      model.model_args.pretrained_model_name_or_path=saves/finetune/full --novice-of 'invented authors and their books'\n"
)
ALTERNATES_OPTIONS = (
    "count", "temperature", "max_new_tokens", "prompt", "novice_of", "strength", "lead", "expert_prompt", "novice_prompt",
)  # fmt: skip
"""The options of `expunge alternates` that its pipeline takes."""
SCORE = """\
Writes saves/unlearn/NAME/difficulty_scores.json, or the file that difficulty.path names: for each forget row the loss, and how far its
gradient lies along that of the whole forget set (projection; score = |projection|), at the model before unlearning.

To first order a row with a HIGH score is forgotten FIRST: "ascending = easy first" is backwards. So difficulty.order=score_desc begins an
epoch with the rows that go fast, score_asc with those that go slowly.

Keys: difficulty.{path, algorithm: auto|naive|jvp|ghost|lora, reduction: token_mean|token_sum, params: auto|all|lora|REGEX, signed,
max_tokens, save_gradient}, and for a run difficulty.{order: none|score_asc|score_desc, select: first_k, k, select_by}.

Example:
  expunge score experiment=unlearn/tofu/default forget_split=forget10 task_name=npo difficulty.path=saves/scores10.json
  expunge unlearn experiment=unlearn/tofu/default trainer=NPO forget_split=forget10 task_name=npo
      difficulty.path=saves/scores10.json difficulty.order=score_desc
"""
SUMMARY = {
    "train": "finetune a model",
    "unlearn": "make a model forget",
    "eval": "evaluate a model",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `expunge`."""
    parser = argparse.ArgumentParser(
        prog="expunge",
        description="Make a causal language model forget chosen training data, and prove what was forgotten and what it cost.",
        epilog="`expunge VERB --help` tells about a verb. Start with `expunge demo`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"expunge {expunge.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in SUMMARY.items():
        _run_options(
            _verb(verbs, verb, summary, f"Example:\n{EXAMPLES[verb]}\n{OVERRIDES}"), CONFIG_NAMES[verb]
        )
    validate = _verb(
        verbs,
        "validate",
        "check a command line and print what it would run",
        f"Example:\n{_as_validate()}\n{OVERRIDES}",
    )
    _run_options(validate, "unlearn.yaml")
    listing = _verb(verbs, "ls", "list choices", "Without KIND, the kinds there are.")
    listing.add_argument(
        "kind", nargs="?", metavar="KIND", help="methods, procedures, metrics, models, experiments, ..."
    )
    _config_dir(listing)
    show = _verb(verbs, "show", "tell about one choice", "Example:\n  expunge show NPO\n")
    show.add_argument("name", metavar="NAME", help="a method, procedure, metric, model, experiment, ...")
    _config_dir(show)
    _alternates_options(verbs)
    score = _verb(
        verbs,
        "score",
        "score how hard each forget row is to forget, for difficulty.order",
        f"{SCORE}\n{OVERRIDES}",
    )
    _run_options(score, CONFIG_NAMES["score"])
    demo = _verb(
        verbs,
        "demo",
        "see the whole thing work: train, unlearn three ways, evaluate, compare",
        "Needs neither GPU nor network.",
    )
    demo.add_argument(
        "--output-dir",
        default=".demo",
        metavar="DIR",
        help="where models and results go (default: %(default)s)",
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of everything drawn (default: %(default)s)")
    demo.add_argument("-v", "--verbose", action="store_true", help="log more")
    return parser


def _alternates_options(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "have the model write other answers to the forget questions, for AltPO and ELM"
    alternates = _verb(
        verbs, "alternates", summary, f"Examples, for AltPO and for ELM:\n{ALTERNATES}\n{OVERRIDES}"
    )
    alternates.add_argument("--output", required=True, metavar="FILE", help="the JSON file to write")
    alternates.add_argument(
        "--count", type=int, metavar="N", help="answers a row (default: 5; with --novice-of 1)"
    )
    alternates.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: %(default)s)"
    )
    alternates.add_argument(
        "--max-new-tokens", type=int, default=200, metavar="N", help="of an answer (default: %(default)s)"
    )
    alternates.add_argument(
        "--prompt", metavar="TEXT", help="what is asked, with {question} and {answer} in it"
    )
    about = "for ELM: change the subject and write as one who knows nothing of this, away from how an expert would"
    alternates.add_argument("--novice-of", metavar="CONCEPT", help=about)
    alternates.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="how far from expert to novice, with --novice-of (default: 3)",
    )
    alternates.add_argument(
        "--lead", metavar="TEXT", help="the sentence that changes the subject (default: one of four in turn)"
    )
    for who in ("expert", "novice"):
        alternates.add_argument(
            f"--{who}-prompt",
            metavar="TEXT",
            help="beginning of a text by one, with {concept} (default: ELM's)",
        )
    _run_options(alternates, "unlearn.yaml")


def script_parser(prog: str, config_name: str) -> argparse.ArgumentParser:
    """The parser of `src/train.py` and `src/eval.py`, which take the field's command lines."""
    parser = argparse.ArgumentParser(
        prog=prog, epilog=OVERRIDES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _run_options(parser, config_name)
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    description = summary[0].upper() + summary[1:] + "."
    return verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _as_validate() -> str:
    return EXAMPLES["unlearn"].replace("expunge unlearn", "expunge validate unlearn")


def _run_options(parser: argparse.ArgumentParser, config_name: str) -> None:
    parser.add_argument(
        "--config-name",
        default=None,
        metavar="NAME",
        help=f"a YAML at the top of the configs (default: {config_name})",
    )
    _config_dir(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="not in this version: start one run for each value"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="GROUP=CHOICE, KEY=VALUE or ~KEY, see below"
    )
    parser.set_defaults(default_config_name=config_name)


def _config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with choices of your own; may repeat",
    )
