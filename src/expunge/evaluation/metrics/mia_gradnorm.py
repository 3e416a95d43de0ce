"""Membership inference by the size of the gradient."""

from __future__ import annotations

from typing import Literal

from expunge.core.ranges import Positive
from expunge.evaluation.metrics.attack import attack
from expunge.evaluation.results import Result
from expunge.evaluation.tables import Floats, GradNormTable


def mia_gradnorm(
    forget: GradNormTable,
    holdout: GradNormTable,
    *,
    p: Positive = 2.0,
    norm: Literal["global", "mean_of_tensors"] = "global",
    train_mode: bool = False,
) -> Result:
    """AUC of the norm of each row's gradient of its mean nll, without the end of the turn.

    Wang et al., arXiv:2402.17012. Range 0 to 1; best is 0.5, or the retain model's value.

    Args:
        forget: gradient norms of the forget rows.
        holdout: gradient norms of rows that no model saw.
        p: order of the norm; a setting of the collector.
        norm: `global` = of the whole gradient; `mean_of_tensors` = the mean of the norms of the parameter
            tensors, as in the field.
        train_mode: whether dropout is on, as in the field; a setting of the collector.
    """
    result = attack(forget.examples, _chosen(forget, norm), holdout.examples, _chosen(holdout, norm))
    facts = {**result.facts, "norm": norm, "p": p, "train_mode": train_mode}
    return Result(result.statistic, parts=result.parts, facts=facts, row_ids=result.row_ids)


def _chosen(table: GradNormTable, norm: str) -> Floats:
    return {"global": table.global_B, "mean_of_tensors": table.tensor_mean_B}[norm]
