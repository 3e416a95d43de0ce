"""`expunge train`, `unlearn` and `eval`: run a configuration, and print the results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from expunge.cli.verb import Verb, begin
from expunge.core.config import Config
from expunge.core.preemption import preemptible

PIPELINES = {
    "finetune": "expunge.pipelines.training_run:run_training",
    "unlearn": "expunge.pipelines.training_run:run_training",
    "procedure": "expunge.pipelines.procedure_run:run_procedure",
    "eval": "expunge.pipelines.evaluate:run",
}
"""The pipeline of each `mode`; unlearning with a procedure has its own."""


def run(args: argparse.Namespace) -> None:
    """Run the configuration of a command line; its `mode`, not the verb, decides what is done."""
    cfg = begin(args)
    with preemptible():
        pipeline_of(cfg)(cfg)
    print_results(cfg)


def pipeline_of(cfg: Config) -> Callable[[Config], object]:
    """The function that runs a configuration; it is imported only here."""
    by_procedure = cfg.get("mode") == "unlearn" and cfg.get("procedure")
    module, _, function = PIPELINES["procedure" if by_procedure else cfg.get("mode")].partition(":")
    found: Callable[[Config], object] = getattr(import_module(module), function)
    return found


def print_results(cfg: Config) -> None:
    """Print the results of a run's evaluation; in a run of several processes, only once."""
    from expunge.lm import runtime
    from expunge.report.outcome import print_outcome

    if runtime.is_primary():
        print_outcome(Path(cfg.get("paths.output_dir")), cfg.section("eval"))


TRAIN = Verb(
    "train",
    "finetune a model",
    "Example:\n  expunge train experiment=finetune/tofu/default model=Llama-3.2-1B-Instruct task_name=full\n",
    run,
    config_name="train.yaml",
)
UNLEARN = Verb(
    "unlearn",
    "make a model forget",
    "Example:\n"
    "  expunge unlearn experiment=unlearn/tofu/default trainer=NPO forget_split=forget10 task_name=npo\n",
    run,
    config_name="unlearn.yaml",
)
EVAL = Verb(
    "eval",
    "evaluate a model",
    "Example:\n"
    "  expunge eval experiment=eval/tofu/default forget_split=forget10 task_name=npo_eval\n"
    "      model.model_args.pretrained_model_name_or_path=saves/unlearn/npo"
    " retain_logs_path=saves/eval/retain/TOFU_EVAL.json\n",
    run,
    config_name="eval.yaml",
)
