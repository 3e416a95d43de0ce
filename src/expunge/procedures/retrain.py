"""Retraining, the reference for unlearning: a model that never saw the rows to forget."""

from __future__ import annotations

from pathlib import Path

from expunge.core.layout import layout_of
from expunge.data.datasets import Dataset
from expunge.procedures.base import Stages, procedure


@procedure(stages={"final": "retain"}, paper="arXiv:2401.06121")
def retrain(stages: Stages, retain: Dataset) -> None:
    """Retraining: finetune the model without any of the data on only the retain rows, as the reference.

    Here `model` must be the model that has seen neither forget nor retain rows, and `trainer.args` the recipe
    of the finetuned model that will forget (`budget=tofu_finetune` for TOFU). The weights do not show whether
    this is true, so a notice reports a start model that a run of this tool has trained.
    """
    start = Path(str(stages.model_args.get("pretrained_model_name_or_path"))).expanduser()
    # The model of a run, or one of its checkpoints.
    if start.is_dir() and any(layout_of(folder) is not None for folder in (start, start.absolute().parent)):
        stages.notice(
            f"retrain starts from {start}, which a run has trained; a reference must start from a model that "
            "has seen none of these rows"
        )
    stages.finetune(retain)
