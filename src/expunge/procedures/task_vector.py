"""Negated task vectors: subtract from the weights the change that finetuning on the forget rows makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.files import is_complete, mark_complete
from expunge.data.datasets import Dataset
from expunge.lm import runtime
from expunge.models.adapters import save_model
from expunge.models.load import load_model
from expunge.procedures.base import Stages, procedure
from expunge.procedures.weights import local_folder, refuse_quantised, shapes, write_negated


@procedure(
    stages={"finetuned": "forget"},
    at_least_0=("scale",),
    whole_model=True,
    paper="arXiv:2212.04089, Sections 2 and 3",
    code="https://github.com/jaechan-repo/muse_bench/blob/e0000386e5318665693db28e27b41711674256ef/baselines/baselines/task_vector.py",
)
def task_vector(stages: Stages, forget: Dataset, *, scale: float = 1.0) -> None:
    """Task vector: theta - scale (theta_f - theta), theta_f = the start model finetuned on the forget rows.

    The result is computed tensor by tensor in float32 and rounded once, to the dtype of the start model. Tied
    weights are one tensor, and integers are copied. Deviations from the code of MUSE: it subtracts in
    bfloat16, where small differences of weights are lost by rounding, and its two models for the vector need
    not include the model that forgets. A new adapter (`model/adapter=lora`) is merged into theta_f.

    Args:
        stages: interface of the run.
        forget: the rows to forget.
        scale: size of the subtracted step, >= 0. 1 is the default of MUSE; the paper chooses it by
            validation. 0 gives the start model.
    """
    start = local_folder(stages.model_args)
    if start is not None:
        refuse_quantised(start)
    tuned = stages.finetuned("finetuned", "forget", whole=True)
    if runtime.is_primary():
        write_negated(_start_folder(stages, tuned), tuned, stages.model_folder, scale)


def _start_folder(stages: Stages, tuned: Path) -> Path:
    """The folder of theta as safetensors with the tensor names of theta_f.

    These are the original files of the model if the names agree. Else the model is saved again, in its own
    dtype: a hub file may contain tied weights twice, or have tensor names of an older version.
    """
    own = local_folder(stages.model_args)
    if own is not None and shapes(own) == shapes(tuned):
        return own
    folder = stages.stages_folder / "start"
    if not is_complete(folder):
        args: Mapping[str, Any] = {**stages.model_args, "torch_dtype": "auto", "device_map": None}
        save_model(load_model(args, for_training=False).model, folder)
        mark_complete(folder)
    return folder
