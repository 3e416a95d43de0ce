"""How little of an answer the model needs to complete it."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import TokenTable, column, row_mean


def extraction_strength(answers: TokenTable, *, floor: bool = False) -> Result:
    """1 - k / L, with k the index after the last token that greedy decoding misses.

    Carlini et al., arXiv:2012.07805, in the form of arXiv:2506.12618. Mean over a row's answers, then over
    rows. L = number of label tokens without the
    end of the turn. Range 0 (the last token is missed) to 1 (every token is hit); on the forget set lower is
    better. An answer without such tokens is unscored.

    Args:
        answers: tokens of the answers.
        floor: the field's form: its search stops one token early, so the value is at least 1 / L.
    """
    score_B = np.array([_strength(hit_N, floor) for hit_N in answers.pieces(answers.hit_M)])
    score_RA = answers.examples.by_row(score_B)
    return Result(
        Mean(row_mean(score_RA)), columns={"score": column(score_RA)}, row_ids=answers.examples.row_ids
    )


def _strength(hit_N: np.ndarray[tuple[int], np.dtype[np.bool_]], floor: bool) -> float:
    size = len(hit_N)
    if not size:
        return float("nan")
    missed = np.flatnonzero(~hit_N)
    start = int(missed[-1]) + 1 if len(missed) else 0
    return 1 - (min(start, size - 1) if floor else start) / size
