"""Retraining, the reference: a model that never saw the rows to forget."""

from __future__ import annotations

from pathlib import Path

from expunge.core.layout import layout_of
from expunge.data.datasets import Dataset
from expunge.procedures.base import Stages, procedure


@procedure(stages={"final": "retain"}, paper="arXiv:2401.06121")
def retrain(stages: Stages, retain: Dataset) -> None:
    """Retraining: the model before any of the data, finetuned on the retain rows alone; what unlearning is held against.

    `model` is here the model that has seen neither the forget nor the retain rows, and `trainer.args` the
    recipe by which the model that is to forget was finetuned (`budget=tofu_finetune` for TOFU's); nothing can
    check that from the weights, so a start model that a run of this tool trained is told in a notice.

    Args:
        stages: of the run.
        retain: the rows to learn.
    """
    start = Path(str(stages.model_args.get("pretrained_model_name_or_path"))).expanduser()
    # The model of a run, or one of its checkpoints.
    if start.is_dir() and any(layout_of(folder) is not None for folder in (start, start.absolute().parent)):
        stages.notice(
            f"retrain starts from {start}, which a run has trained: a reference must start from a model that has seen no such row"
        )
    stages.finetune(retain)
