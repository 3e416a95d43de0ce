"""`expunge demo`: train, unlearn with three methods, evaluate and compare, on the embedded benchmark."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from expunge.config.validate import load_config
from expunge.core.config import Config
from expunge.pipelines import evaluate
from expunge.pipelines.training_run import run_training
from expunge.report.table import compare

log = logging.getLogger(__name__)

METHODS = {"GradAscent": "default", "SimNPO": "simnpo", "NPO": "npo"}
"""Method -> its experiment under `unlearn/mini/`."""


def run(output_dir: Path, seed: int = 0) -> None:
    """Train the full and the retain model, let the full one forget with three methods, and print one table.

    A second call reuses the finished runs in `output_dir`.
    """
    # A model this small gains nothing from a second thread, and with one its numbers are the same everywhere.
    torch.set_num_threads(1)
    begun = time.monotonic()
    full, retain = output_dir / "full", output_dir / "retain90"
    full_eval, retain_eval = output_dir / "full_eval", output_dir / "retain90_eval"
    logs = f"retain_logs_path={retain_eval / 'TOFU_EVAL.json'}"

    def config(name: str, folder: Path, experiment: str, *overrides: str) -> Config:
        common = [f"task_name={folder.name}", f"paths.output_dir={folder}", f"seed={seed}"]
        if name != "eval":
            common.append("trainer.args.logging_steps=20")
        return load_config(f"{name}.yaml", [f"experiment={experiment}", *overrides, *common])

    def model(folder: Path) -> str:
        return f"model.model_args.pretrained_model_name_or_path={folder}"

    log.info("1/4  finetuning the model on all invented authors (%s)", full)
    run_training(config("train", full, "finetune/mini/default"))
    log.info("2/4  finetuning a second model that never sees the rows to forget (%s)", retain)
    rows = "data.train.MINI_full.args.hf_args.name=retain90"
    run_training(config("train", retain, "finetune/mini/default", rows))
    log.info("3/4  evaluating both: the other models are compared with the retain model")
    evaluate.run(config("eval", retain_eval, "eval/mini/default", model(retain)))
    evaluate.run(config("eval", full_eval, "eval/mini/default", model(full), logs))
    for method, experiment in METHODS.items():
        log.info("4/4  unlearning with %s", method)
        words = f"trainer={method}", model(full), logs
        run_training(config("unlearn", output_dir / method, f"unlearn/mini/{experiment}", *words))
    compare(
        {"full": full_eval, **{name: output_dir / name for name in METHODS}, "retain90": retain_eval},
        start="full",
        retain="retain90",
        write_to=output_dir / "table",
        title="mini: forget10 of 40 invented authors",
    )
    log.info("the runs and the table are in %s; %.0f s", output_dir, time.monotonic() - begun)
