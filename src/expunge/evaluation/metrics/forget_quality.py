"""Whether the truth ratios are distributed as the retain model's are."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.evaluation.results import Result
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.statistics import KolmogorovSmirnov


def forget_quality(truth_ratio: Result, retain_logs: RetainLogs | None) -> Result:
    """p-value of the two-sample Kolmogorov-Smirnov test of the truth ratios against the retain model's.

    TOFU, arXiv:2401.06121, section 2.2, on the same rows. Range 0 to 1, higher is better: 1 =
    indistinguishable from a model that never saw the forget set. The interval is of the statistic D, because
    an interval of a p-value has no meaning. Null without retain logs.
    """
    if retain_logs is None:
        return Result.missing("no retain_logs_path")
    name = truth_ratio.name or "forget_truth_ratio"
    if not retain_logs.has(name):
        return Result.missing(f"{retain_logs.path} has no {name}")
    reference_R = retain_logs.column(name, "score", truth_ratio.row_ids)
    statistic = KolmogorovSmirnov(truth_ratio.columns["score"], reference_R, paired=True)
    return ks_result(statistic, "no row has a truth ratio under both models", truth_ratio.row_ids)


def ks_result(statistic: KolmogorovSmirnov, reason: str, row_ids: Sequence[str] = ()) -> Result:
    """The p-value of a Kolmogorov-Smirnov test, with the interval of D; `reason`: why it has no scores."""
    distance = statistic.value()
    if distance is None:
        return Result.missing(reason)
    from scipy.stats import ks_2samp

    p_value = float(ks_2samp(*statistic.kept()).pvalue)
    return Result(statistic, facts={"D": distance}, reported=p_value, interval_of="D", row_ids=row_ids)
