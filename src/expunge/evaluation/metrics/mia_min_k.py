"""Membership inference by the least likely tokens."""

from __future__ import annotations

from expunge.core.ranges import Share
from expunge.evaluation.metrics.attack import attack, lowest_mean
from expunge.evaluation.results import Result
from expunge.evaluation.tables import TokenTable


def mia_min_k(forget: TokenTable, holdout: TokenTable, *, k: Share = 0.4) -> Result:
    """AUC of minus the mean of the lowest max(1, floor(k n)) token log-probabilities.

    Shi et al., arXiv:2310.16789. The end of the turn is left out. Range 0 to 1; best is 0.5, or the retain
    model's value.

    Args:
        forget: tokens of the forget rows.
        holdout: tokens of rows that no model saw.
        k: share of the tokens.
    """
    scores = [lowest_mean(table, table.logp_M, k) for table in (forget, holdout)]
    return attack(forget.examples, scores[0], holdout.examples, scores[1])
