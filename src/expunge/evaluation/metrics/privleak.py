"""Leakage of membership relative to a model that never saw the rows."""

from __future__ import annotations

from expunge.core.ranges import NotNegative
from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.statistics import Mapped

CHANCE = 0.5


def privleak(
    attack: Result,
    retain_logs: RetainLogs | None,
    *,
    allow_missing_reference: bool = False,
    eps: NotNegative = 0.0,
) -> Result:
    """100 (s - ref) / (ref + eps), with s = 1 - AUC of this model and ref = 1 - AUC of the retain model.

    MUSE, arXiv:2407.06460, section 3.1. Best is 0; below 0 = under-unlearned (forget rows are still
    recognised), above 0 = over-unlearned. Null without retain logs, unless chance (AUC 0.5) is allowed as the
    reference, which the result then states. Null if ref and eps are 0.

    Args:
        attack: `mia_min_k` of this model.
        retain_logs: the retain model's evaluation.
        allow_missing_reference: without logs, use 0.5.
        eps: the field adds 1e-10 to the denominator.
    """
    name = attack.name or "mia_min_k"
    known = retain_logs.aggregate(name) if retain_logs is not None else None
    if known is None and not allow_missing_reference:
        return Result.missing(
            "no retain_logs_path" if retain_logs is None else f"{retain_logs.path} has no value of {name}"
        )
    if known is not None and retain_logs is not None:
        for side, part in attack.parts.items():
            retain_logs.check(name, part.row_ids, side)
    reference = 1 - (CHANCE if known is None else known)
    if reference + eps == 0 or attack.statistic is None:
        return Result.missing(f"the retain model's {name} is 1: there is nothing to divide by")
    statistic = Mapped(attack.statistic, lambda auc: 100 * ((1 - auc) - reference) / (reference + eps))
    facts = {"reference": 1 - reference, "reference_is_chance": known is None}
    return Result(statistic, facts=facts, row_ids=attack.row_ids)
