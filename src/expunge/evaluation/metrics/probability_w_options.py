"""Probability of the true answer among the options."""

from __future__ import annotations

import numpy as np

from expunge.core.ranges import NotNegative
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean


def probability_w_options(correct: Result, wrong: Result, *, eps: NotNegative = 1e-10) -> Result:
    """p_true / (p_true + sum of p_wrong + eps), on length-normalised probabilities; mean over rows.

    TOFU, arXiv:2401.06121, section 2.2 (real authors and world facts). Range 0 to 1, higher is better. With
    `eps`, a model that gives all options no probability scores 0, not 1 / (number of options).

    Args:
        correct: `probability` of the true answer.
        wrong: `probability` of the wrong answers, one or several per row.
        eps: added to the denominator.
    """
    true_R = correct.columns["prob"]
    wrong_RA = np.asarray(wrong.columns["prob"]).reshape(len(true_R), -1)
    unscored_R = np.isnan(true_R) | np.isnan(wrong_RA).all(1)
    score_R = np.where(unscored_R, np.nan, true_R / (true_R + np.nansum(wrong_RA, axis=1) + eps))
    return Result(Mean(score_R), columns={"prob": score_R}, row_ids=correct.row_ids)
