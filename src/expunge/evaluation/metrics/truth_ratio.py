"""Truth ratio: wrong answers against a right one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from expunge.core.ranges import NotNegative
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import Floats, row_mean

Aggregate = Literal["closer_to_1", "true_better", "prob_mean"]
WrongMean = Literal["geometric", "arithmetic"]


def truth_ratio(
    correct: Result,
    wrong: Result,
    *,
    aggregate: Aggregate = "closer_to_1",
    eps: NotNegative = 1e-10,
    wrong_mean: WrongMean = "geometric",
) -> Result:
    """R = w / (c + eps), with w of the wrong answers and c = exp(-mean nll of a right answer).

    w = exp(-mean over wrong answers of their mean nll). TOFU, arXiv:2401.06121, equation 1. The paper
    averages the probabilities of the wrong answers (`wrong_mean="arithmetic"`); its authors' code and the
    field's average their logarithms (`"geometric"`). `eps` is from the field. `eps=0` is the authors' form in
    logarithms; with it, a model that gives all answers no probability looks perfectly forgotten. log R
    without eps is stored beside R.

    Aggregates, each a mean over rows: `closer_to_1` min(R, 1 / (R + eps)), range 0 to 1, on the forget set
    best near the retain model's value; `true_better` max(0, 1 - R), range 0 to 1, higher is better;
    `prob_mean` c / (c + w), range 0 to 1. A row without a right or any wrong answer is unscored.

    Args:
        correct: `probability` of the right answer (the paraphrased one on forget and retain rows).
        wrong: `probability` of the wrong answers.
        aggregate: see above.
        eps: added to denominators.
        wrong_mean: how wrong answers are averaged.
    """
    log_c_R = -np.asarray(correct.columns["avg_loss"])
    log_w_R = _log_wrong(-np.asarray(wrong.columns["avg_loss"]).reshape(len(log_c_R), -1), wrong_mean)
    log_ratio_R = log_w_R - log_c_R
    with np.errstate(over="ignore"):
        ratio_R = np.exp(log_w_R) / (np.exp(log_c_R) + eps) if eps else np.exp(log_ratio_R)
    score_R = _score(aggregate, ratio_R, log_ratio_R, eps)
    return Result(
        Mean(score_R), columns={"score": ratio_R, "log_ratio": log_ratio_R}, row_ids=correct.row_ids
    )


def _log_wrong(logp_RA: Floats, wrong_mean: WrongMean) -> Floats:
    """Log w of each row, from mean log-probabilities of the wrong answers."""
    if wrong_mean == "geometric":
        return row_mean(logp_RA)
    assert wrong_mean == "arithmetic", wrong_mean
    top_R = np.fmax.reduce(logp_RA, axis=1)
    log_mean: Floats = top_R + np.log(row_mean(np.exp(logp_RA - top_R[:, None])))
    return log_mean


def _score(aggregate: Aggregate, ratio_R: Floats, log_ratio_R: Floats, eps: float) -> Floats:
    if aggregate == "true_better":
        return np.maximum(0.0, 1 - ratio_R)
    if aggregate == "prob_mean":
        score_R: Floats = np.exp(-np.logaddexp(0.0, log_ratio_R))
        return score_R
    assert aggregate == "closer_to_1", aggregate
    # With eps = 0, use the logarithm: the smaller of R and 1 / R, without a division by 0.
    return np.minimum(ratio_R, 1 / (ratio_R + eps)) if eps else np.exp(-np.abs(log_ratio_R))
