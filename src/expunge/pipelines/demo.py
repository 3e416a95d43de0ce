"""`expunge demo`: train, unlearn by three methods, evaluate and compare, on the embedded benchmark."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.pipelines import evaluate
from expunge.pipelines.training_run import run_training
from expunge.report.table import compare

log = logging.getLogger(__name__)

METHODS = {"GradAscent": "default", "SimNPO": "simnpo", "NPO": "npo"}
"""Method -> the experiment under `unlearn/mini/` that has its values for the embedded benchmark."""


def run(output_dir: Path, seed: int = 0) -> None:
    """Train the full and the retain model, make the full one forget by three methods, and print one table.

    Runs that are finished are not repeated: a second call takes the trained models and the evaluations from
    `output_dir`.

    Args:
        output_dir: where runs and the table go.
        seed: of every run.
    """
    # A model this small gains nothing from a second thread, and its numbers no longer depend on how many
    # there are.
    torch.set_num_threads(1)
    begun = time.monotonic()
    full, retain = output_dir / "full", output_dir / "retain90"
    log.info("1/4  finetuning the model on all invented authors (%s)", full)
    run_training(_config("train.yaml", full, seed, "experiment=finetune/mini/default"))
    log.info("2/4  finetuning a second one that never sees the rows to forget (%s)", retain)
    run_training(
        _config(
            "train.yaml",
            retain,
            seed,
            "experiment=finetune/mini/default",
            "data.train.MINI_full.args.hf_args.name=retain90",
        )
    )
    log.info("3/4  evaluating both: the retain model is what the others are held against")
    logs = f"retain_logs_path={output_dir / 'retain90_eval' / 'TOFU_EVAL.json'}"
    _evaluate(output_dir / "retain90_eval", retain, seed)
    _evaluate(output_dir / "full_eval", full, seed, logs)
    for method, experiment in METHODS.items():
        log.info("4/4  unlearning with %s", method)
        start = f"model.model_args.pretrained_model_name_or_path={full}"
        run_training(
            _config(
                "unlearn.yaml",
                output_dir / method,
                seed,
                f"experiment=unlearn/mini/{experiment}",
                f"trainer={method}",
                start,
                logs,
            )
        )
    compare(
        {
            "full": output_dir / "full_eval",
            **{name: output_dir / name for name in METHODS},
            "retain90": output_dir / "retain90_eval",
        },
        start="full",
        retain="retain90",
        write_to=output_dir / "table",
        title="mini: forget10 of 40 invented authors",
    )
    log.info("the runs and the table are in %s; %.0f s", output_dir, time.monotonic() - begun)


def _evaluate(folder: Path, model: Path, seed: int, *overrides: str) -> None:
    evaluate.run(
        _config(
            "eval.yaml",
            folder,
            seed,
            "experiment=eval/mini/default",
            f"model.model_args.pretrained_model_name_or_path={model}",
            *overrides,
        )
    )


def _config(name: str, folder: Path, seed: int, *overrides: str) -> Config:
    common: Sequence[str] = (
        f"task_name={folder.name}",
        f"paths.output_dir={folder}",
        f"seed={seed}",
        "trainer.args.logging_steps=20",
    )
    return load_config(
        name,
        [*overrides, *(item for item in common if name != "eval.yaml" or not item.startswith("trainer"))],
    )
