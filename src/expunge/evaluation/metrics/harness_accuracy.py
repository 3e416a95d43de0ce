"""Accuracy by lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated

from expunge.core.ranges import AtLeast, Count
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import HarnessTable


def harness_accuracy(
    documents: HarnessTable,
    *,
    num_fewshot: Annotated[int, AtLeast(0)] | None = None,
    limit: Count | None = None,
) -> Result:
    """Mean `acc` over the documents of a task of lm-evaluation-harness. Range 0 to 1, higher is better.

    Args:
        documents: the harness's accuracy of each document.
        num_fewshot: worked examples before each question, None = the task's own number; a setting of the
            collector.
        limit: documents at most, None = all; a setting of the collector.
    """
    facts = {"num_fewshot": num_fewshot, **({} if limit is None else {"limit": limit})}
    score_B, ids = documents.acc_B, documents.examples.row_ids
    return Result(Mean(score_B), columns={"score": score_B}, facts=facts, row_ids=ids)
