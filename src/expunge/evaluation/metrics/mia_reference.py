"""Membership inference by the loss relative to a reference model."""

from __future__ import annotations

from expunge.evaluation.metrics.attack import attack_of_rows
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs


def mia_reference(loss: Result, retain_logs: RetainLogs | None) -> Result:
    """AUC of (mean nll - the retain model's mean nll) between forget and holdout rows.

    Carlini et al., arXiv:2112.03570, with the retain model as the reference. Range 0 to 1; best is 0.5. Null
    without retain logs.
    """
    if retain_logs is None:
        return Result.missing("no retain_logs_path")
    name = loss.name or "mia_loss"
    if not retain_logs.has(name):
        return Result.missing(f"{retain_logs.path} has no {name}")
    sides = {}
    for side, part in loss.parts.items():
        sides[side] = part.columns["score"] - retain_logs.column(name, "score", part.row_ids, side)
    parts = loss.parts
    return attack_of_rows(
        sides["forget"], parts["forget"].row_ids, sides["holdout"], parts["holdout"].row_ids
    )
