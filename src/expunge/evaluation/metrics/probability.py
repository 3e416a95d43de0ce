"""Length-normalised probability of the answers."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import TokenTable, column, row_mean


def probability(answers: TokenTable) -> Result:
    """exp(mean over label tokens of log p); mean over a row's answers, then over rows.

    The geometric mean of the token probabilities, not an accuracy (TOFU, arXiv:2401.06121, section 2.2). The
    token that ends the turn counts. Range 0 to 1. On the forget set lower is better, elsewhere higher. A row
    without label tokens is unscored. `prob` and `avg_loss` are lists if rows have several answers.
    """
    avg_nll_RA = answers.examples.by_row(answers.avg_nll_B)
    prob_RA = np.exp(-avg_nll_RA)
    return Result(
        Mean(row_mean(prob_RA)),
        columns={"prob": column(prob_RA), "avg_loss": column(avg_nll_RA)},
        row_ids=answers.examples.row_ids,
    )
