"""Membership inference by the least likely tokens, normalised over the vocabulary."""

from __future__ import annotations

import numpy as np

from expunge.core.ranges import Positive, Share
from expunge.evaluation.metrics.attack import attack, lowest_mean
from expunge.evaluation.results import Result
from expunge.evaluation.tables import Floats, TokenTable


def mia_min_k_plus_plus(
    forget: TokenTable, holdout: TokenTable, *, k: Share = 0.4, min_var: Positive = 1e-6
) -> Result:
    """`mia_min_k` of (log p - mu) / sqrt(max(var, min_var)).

    mu and var are the mean and variance of log p over the vocabulary under p. Zhang et al., arXiv:2404.02936,
    equation 4. Range 0 to 1; best is 0.5, or the retain model's value.

    Args:
        forget: tokens of the forget rows.
        holdout: tokens of rows that no model saw.
        k: share of the tokens.
        min_var: lower limit of the variance, from the field.
    """
    scores = [lowest_mean(table, _normalised(table, min_var), k) for table in (forget, holdout)]
    return attack(forget.examples, scores[0], holdout.examples, scores[1])


def _normalised(table: TokenTable, min_var: Positive) -> Floats:
    score_M: Floats = (table.logp_M - table.mu_M) / np.sqrt(np.maximum(table.var_M, min_var))
    return score_M
