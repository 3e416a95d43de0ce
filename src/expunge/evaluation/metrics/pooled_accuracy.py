"""Accuracy over several sets of questions."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean


def pooled_accuracy(parts: tuple[Result, ...]) -> Result:
    """Mean score over the rows of all parts: a part's weight is its number of rows.

    The same as the group `wmdp` of lm-evaluation-harness. Null if a part is null.
    """
    odd = [part.name for part in parts if "score" not in part.columns]
    if odd:
        return Result.missing(f"no score per row: {', '.join(odd)}")
    score_R = np.concatenate([part.columns["score"] for part in parts])
    return Result(Mean(score_R), facts={"parts": {part.name: part.value for part in parts}})
