"""Aggregates on rows and on resampled rows, against scipy, scikit-learn and hand-worked numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from expunge.evaluation.statistics import (
    Auc,
    HarmonicMean,
    KolmogorovSmirnov,
    Mapped,
    Mean,
    Ratio,
    draw,
    interval,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_mean_leaves_unscored_rows_out_and_counts_them() -> None:
    mean = Mean(np.array([0.2, np.nan, 0.4]))
    assert mean.value() == pytest.approx(0.3)
    assert mean.scored() == (2, 1)
    assert Mean(np.array([np.nan])).value() is None
    assert interval(Mean(np.array([np.nan])), "x", 100, 0) is None


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    """400 rows of standard deviation 1: the standard error is .05, so the interval is close to +-.098."""
    score_R = np.random.default_rng(1).standard_normal(400)
    found = interval(Mean(score_R), "some", 1000, 0)
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * score_R.std() / 20, rel=0.1)
    assert found.low < score_R.mean() < found.high
    assert (found.of, found.resamples, found.seed) == ("value", 1000, 0)


def test_an_interval_holds_the_middle_95_percent_of_what_was_resampled() -> None:
    class Ramp:
        """1001 resampled values, 0 to 1000: the 2.5th percentile is 25, the 97.5th 975."""

        def value(self) -> float:
            return 500.0

        def resample(self, rng: np.random.Generator, count: int) -> Any:
            return rng.permutation(np.arange(1001.0))

        def scored(self) -> tuple[int, int]:
            return 9, 0

    found = interval(Ramp(), "some", 1001, 0)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(25.0), pytest.approx(975.0))


def test_draws_depend_on_the_metric_and_the_seed_alone() -> None:
    mean = Mean(np.arange(20.0))
    assert interval(mean, "a", 100, 0) == interval(mean, "a", 100, 0)
    assert interval(mean, "a", 100, 0) != interval(mean, "b", 100, 0)
    assert interval(mean, "a", 100, 0) != interval(mean, "a", 100, 1)
    assert interval(mean, "a", 0, 0) is None


def test_auc_is_scikit_learns_with_ties() -> None:
    source = np.random.default_rng(2)
    forget_R, holdout_S = source.integers(0, 12, 50).astype(float), source.integers(3, 15, 70).astype(float)
    labels = np.r_[np.zeros(50), np.ones(70)]
    assert Auc(forget_R, holdout_S).value() == pytest.approx(
        roc_auc_score(labels, np.r_[forget_R, holdout_S]), abs=1e-12
    )


def test_resampled_auc_is_the_auc_of_the_rows_drawn() -> None:
    """The same draws, rows written out one by one, each side keeping its size."""
    source = np.random.default_rng(3)
    forget_R, holdout_S = source.integers(0, 9, 11).astype(float), source.integers(2, 12, 13).astype(float)
    same = rng()
    draw_KR, draw_KS = draw(same, 5, 11), draw(same, 5, 13)
    assert (draw_KR.sum(1) == 11).all()
    found_K = Auc(forget_R, holdout_S).resample(rng(), 5)
    for found, draw_R, draw_S in zip(found_K, draw_KR, draw_KS, strict=True):
        chosen = np.r_[np.repeat(forget_R, draw_R), np.repeat(holdout_S, draw_S)]
        assert found == pytest.approx(roc_auc_score(np.r_[np.zeros(11), np.ones(13)], chosen), abs=1e-12)


def test_unscored_rows_of_an_attack_are_left_out() -> None:
    auc = Auc(np.array([0.0, np.nan, 1.0]), np.array([0.5, np.nan]))
    assert auc.value() == 0.5
    assert auc.scored() == (3, 2)
    assert Auc(np.array([np.nan]), np.array([1.0])).value() is None


def test_ks_distance_is_scipys_with_ties_and_on_resampled_rows() -> None:
    source = np.random.default_rng(4)
    here_R, there_R = source.integers(0, 9, 40).astype(float), source.integers(2, 12, 40).astype(float)
    statistic = KolmogorovSmirnov(here_R, there_R, paired=True)
    assert statistic.value() == pytest.approx(ks_2samp(here_R, there_R).statistic, abs=1e-12)
    for found, draw_R in zip(statistic.resample(rng(), 5), draw(rng(), 5, 40), strict=True):
        rows = np.repeat(np.arange(40), draw_R)  # a row is drawn with both of its scores
        assert found == pytest.approx(ks_2samp(here_R[rows], there_R[rows]).statistic, abs=1e-12)


def test_ks_leaves_out_rows_without_a_score_on_either_side() -> None:
    statistic = KolmogorovSmirnov(np.array([1.0, np.nan, 2.0]), np.array([1.0, 5.0, np.nan]), paired=True)
    assert statistic.value() == 0.0
    assert statistic.scored() == (1, 2)


def test_ks_of_sets_of_different_rows_draws_them_apart() -> None:
    one_R, other_S = np.array([1.0, 2, np.nan, 4]), np.array([3.0, 2, 5, np.nan, 2])
    statistic = KolmogorovSmirnov(one_R, other_S)
    assert statistic.value() == pytest.approx(
        ks_2samp(one_R[[0, 1, 3]], other_S[[0, 1, 2, 4]]).statistic, abs=1e-12
    )
    assert statistic.scored() == (7, 2)
    source = rng()
    draw_R, draw_S = draw(source, 5, 3), draw(source, 5, 4)
    for found, times_R, times_S in zip(statistic.resample(rng(), 5), draw_R, draw_S, strict=True):
        one, other = np.repeat(one_R[[0, 1, 3]], times_R), np.repeat(other_S[[0, 1, 2, 4]], times_S)
        assert found == pytest.approx(ks_2samp(one, other).statistic, abs=1e-12)


def test_harmonic_mean_is_0_where_a_part_is_and_scipys_elsewhere() -> None:
    parts = [Mean(np.array([0.2, 0.4])), Mean(np.array([0.5]))]
    assert HarmonicMean(parts, ["a", "b"]).value() == pytest.approx(hmean([0.3, 0.5]))
    assert HarmonicMean([*parts, Mean(np.zeros(3))], ["a", "b", "c"]).value() == 0.0
    assert HarmonicMean([*parts, Mean(np.array([np.nan]))], ["a", "b", "c"]).value() is None


def test_parts_over_the_same_rows_are_drawn_together() -> None:
    """x and 1 - x of the same rows: their means sum to 1, so the harmonic mean is 2 m (1 - m)."""
    score_R = np.random.default_rng(5).random(30)
    together = HarmonicMean([Mean(score_R), Mean(1 - score_R)], ["same", "same"]).resample(rng(), 50)
    mean_K = draw(rng(), 50, 30) @ score_R / 30
    np.testing.assert_allclose(together, 2 * mean_K * (1 - mean_K))
    apart = HarmonicMean([Mean(score_R), Mean(1 - score_R)], ["one", "other"]).resample(rng(), 50)
    assert not np.allclose(apart, together)


def test_a_ratio_of_sums_is_not_a_mean_of_ratios() -> None:
    """(6 + 1) / (2 + 1), not (3 + 1) / 2."""
    ratio = Ratio(np.array([6.0, 1.0, np.nan]), np.array([2.0, 1.0, 9.0]))
    assert ratio.value() == pytest.approx(7 / 3)
    assert ratio.scored() == (2, 1)
    assert Mapped(ratio, np.log).value() == pytest.approx(np.log(7 / 3))
    assert set(np.round(ratio.resample(rng(), 200), 6)) <= {3.0, 1.0, round(7 / 3, 6)}


def test_nineteen_intervals_of_twenty_hold_the_truth() -> None:
    """300 samples of 80 rows of mean .5: .95 +- .025 (two standard errors) of the intervals have .5."""
    source = np.random.default_rng(6)
    found = [interval(Mean(source.random(80)), "some", 200, seed) for seed in range(300)]
    held = np.mean([one is not None and one.low <= 0.5 <= one.high for one in found])
    assert 0.91 <= held <= 0.98
