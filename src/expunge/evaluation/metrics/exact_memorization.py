"""Share of label tokens that greedy decoding predicts."""

from __future__ import annotations

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import TokenTable, column, row_mean


def exact_memorization(answers: TokenTable) -> Result:
    """Mean over label tokens of (most likely token == label); mean over a row's answers, then over rows.

    Tirumala et al., arXiv:2205.10770. The end of the turn is left out. Range 0 to 1; on the forget set lower
    is better. An answer without such tokens is unscored.
    """
    score_RA = answers.examples.by_row(answers.mean(answers.hit_M, ~answers.turn_end_M))
    return Result(
        Mean(row_mean(score_RA)), columns={"score": column(score_RA)}, row_ids=answers.examples.row_ids
    )
