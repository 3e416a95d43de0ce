"""SOUL's comparison of forget and retain rows under one model."""

from __future__ import annotations

from expunge.evaluation.metrics.forget_quality import ks_result
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import KolmogorovSmirnov


def tofu_soul_ks(forget: Result, retain: Result) -> Result:
    """p-value of the two-sample Kolmogorov-Smirnov test of forget against retain truth ratios.

    Both are of the SAME model. SOUL's public code (arXiv:2404.18239) reports this as forget quality. It is
    not: it uses no retain model, and a model that treats all rows alike scores 1, whether it forgot or not.
    For TOFU's `forget_quality`, give `retain_logs_path`. Range 0 to 1; the interval is of the statistic D.

    Args:
        forget: `truth_ratio` of the forget rows.
        retain: `truth_ratio` of the retain rows.
    """
    statistic = KolmogorovSmirnov(forget.columns["score"], retain.columns["score"])
    return ks_result(statistic, "no forget or no retain row has a truth ratio")
