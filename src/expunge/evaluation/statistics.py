"""Aggregates over rows: the value and its bootstrap interval come from one definition."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from expunge.evaluation.tables import Floats, Ints

LEVEL = 0.95


class Interval(NamedTuple):
    """A percentile bootstrap interval.

    Attributes:
        low: 2.5th percentile of the resampled values.
        high: 97.5th percentile.
        of: the quantity: `value`, or `D` for a Kolmogorov-Smirnov test.
        resamples: number of draws.
        seed: of the draws.
    """

    low: float
    high: float
    of: str
    resamples: int
    seed: int


class Statistic(Protocol):
    """An aggregate over rows."""

    def value(self) -> float | None:
        """The value on the rows; None if no row is scored."""

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """[count] values, each on rows drawn with replacement."""

    def scored(self) -> tuple[int, int]:
        """Numbers of scored and of unscored rows."""


def interval(
    statistic: Statistic, name: str, resamples: int, seed: int, of: str = "value"
) -> Interval | None:
    """The 95% interval of a statistic. The metric's name and `seed` alone determine the draws.

    None if the statistic has no value, if fewer than two rows are scored, or if `resamples` is 0.
    """
    # Every draw from one row is that row: the interval would have no width and look like certainty.
    if resamples < 1 or statistic.value() is None or statistic.scored()[0] < 2:
        return None
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    value_K = statistic.resample(rng, resamples)
    value_K = value_K[np.isfinite(value_K)]
    if not len(value_K):
        return None
    low, high = np.quantile(value_K, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), of, resamples, seed)


def draw(rng: np.random.Generator, count: int, size: int) -> Ints:
    """How often each of `size` rows is drawn, [count, size]; each line sums to `size`."""
    return rng.multinomial(size, np.full(size, 1 / size), size=count)


@dataclass(frozen=True)
class Mean:
    """Mean over rows.

    Attributes:
        score_R: one score per row, NaN = unscored: left out of the mean, counted separately.
    """

    score_R: Floats

    def value(self) -> float | None:
        """The mean of the scored rows."""
        kept = self.score_R[~np.isnan(self.score_R)]
        return float(kept.mean()) if len(kept) else None

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Draws from the scored rows."""
        kept = self.score_R[~np.isnan(self.score_R)]
        return self.weighted(draw(rng, count, len(kept)), kept)

    def weighted(self, draw_KR: Ints, score_R: Floats | None = None) -> Floats:
        """[K] means under row counts, unscored rows left out; NaN if no scored row was drawn."""
        score_R = self.score_R if score_R is None else score_R
        valid_R = ~np.isnan(score_R)
        total_K = draw_KR @ np.where(valid_R, score_R, 0.0)
        size_K = draw_KR @ valid_R
        mean_K: Floats = np.divide(total_K, size_K, out=np.full(len(draw_KR), np.nan), where=size_K > 0)
        return mean_K

    def scored(self) -> tuple[int, int]:
        """Scored and unscored rows."""
        unscored = int(np.isnan(self.score_R).sum())
        return len(self.score_R) - unscored, unscored


@dataclass(frozen=True)
class Ratio:
    """Sum of one column over sum of another, over rows.

    Attributes:
        above_R: numerator of each row, NaN = unscored.
        below_R: denominator of each row.
    """

    above_R: Floats
    below_R: Floats

    def value(self) -> float | None:
        """The ratio over the scored rows; None if its denominator is 0."""
        above_R, below_R = self._kept()
        return float(above_R.sum() / below_R.sum()) if below_R.sum() else None

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Draws from the scored rows."""
        above_R, below_R = self._kept()
        draw_KR = draw(rng, count, len(above_R))
        below_K = draw_KR @ below_R
        ratio_K: Floats = np.divide(draw_KR @ above_R, below_K, out=np.full(count, np.nan), where=below_K > 0)
        return ratio_K

    def scored(self) -> tuple[int, int]:
        """Scored and unscored rows."""
        kept = len(self._kept()[0])
        return kept, len(self.above_R) - kept

    def _kept(self) -> tuple[Floats, Floats]:
        keep = ~np.isnan(self.above_R)
        return self.above_R[keep], self.below_R[keep]


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve: probability that a forget row scores below a holdout row; ties count half.

    Attributes:
        forget_R: scores of the forget rows, loss-like; NaN = unscored.
        holdout_S: scores of the holdout rows.
    """

    forget_R: Floats
    holdout_S: Floats

    def value(self) -> float | None:
        """The area; None if a side has no scored row."""
        forget_R, holdout_S = self._kept()
        if not len(forget_R) or not len(holdout_S):
            return None
        one_R, one_S = np.ones((1, len(forget_R)), np.int64), np.ones((1, len(holdout_S)), np.int64)
        return float(self._weighted(one_R, one_S)[0])

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Stratified: forget and holdout rows are drawn separately, each side keeps its size."""
        forget_R, holdout_S = self._kept()
        return self._weighted(draw(rng, count, len(forget_R)), draw(rng, count, len(holdout_S)))

    def scored(self) -> tuple[int, int]:
        """Both sides together."""
        kept = sum(map(len, self._kept()))
        return kept, len(self.forget_R) + len(self.holdout_S) - kept

    def _kept(self) -> tuple[Floats, Floats]:
        return self.forget_R[~np.isnan(self.forget_R)], self.holdout_S[~np.isnan(self.holdout_S)]

    def _weighted(self, draw_KR: Ints, draw_KS: Ints) -> Floats:
        """[K] areas under row counts, from ranks, without an R x S table."""
        forget_R, holdout_S = self._kept()
        order_R = np.argsort(forget_R, kind="stable")
        below_KR1 = np.pad(np.cumsum(draw_KR[:, order_R], axis=1), ((0, 0), (1, 0)))
        less_S = np.searchsorted(forget_R[order_R], holdout_S, side="left")
        upto_S = np.searchsorted(forget_R[order_R], holdout_S, side="right")
        won_KS = 0.5 * (below_KR1[:, less_S] + below_KR1[:, upto_S])
        area: Floats = (won_KS * draw_KS).sum(1) / (draw_KR.sum(1) * draw_KS.sum(1))
        return area


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """The largest distance D between the distributions of two sets of scores.

    Attributes:
        one_R: scores of one set, NaN = unscored.
        other_S: scores of the other.
        paired: whether both are scores of the same rows, in the same order. Then a row with NaN in one set
            is left out of both, and a resample draws rows with both of their scores.
    """

    one_R: Floats
    other_S: Floats
    paired: bool = False

    def value(self) -> float | None:
        """D; None if a set has no scored row."""
        one_R, other_S = self.kept()
        if not len(one_R) or not len(other_S):
            return None
        return float(
            self._distance(np.ones((1, len(one_R)), np.int64), np.ones((1, len(other_S)), np.int64))[0]
        )

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Unpaired sets are drawn separately, each with its size. Resampled D is on average above D."""
        one_R, other_S = self.kept()
        draw_KR = draw(rng, count, len(one_R))
        return self._distance(draw_KR, draw_KR if self.paired else draw(rng, count, len(other_S)))

    def scored(self) -> tuple[int, int]:
        """Scored and unscored rows: pairs if the sets are paired, else the rows of both sets."""
        kept = [len(scores) for scores in self.kept()]
        if self.paired:
            return kept[0], len(self.one_R) - kept[0]
        return sum(kept), len(self.one_R) + len(self.other_S) - sum(kept)

    def kept(self) -> tuple[Floats, Floats]:
        """The scored rows of both."""
        keep_R, keep_S = ~np.isnan(self.one_R), ~np.isnan(self.other_S)
        if self.paired:
            keep_R = keep_S = keep_R & keep_S
        return self.one_R[keep_R], self.other_S[keep_S]

    def _distance(self, draw_KR: Ints, draw_KS: Ints) -> Floats:
        both = np.concatenate(self.kept())
        order = np.argsort(both, kind="stable")
        # Among equal scores, only the last one has the value of the distribution function.
        last = np.append(both[order][1:] != both[order][:-1], True)
        # Every draw keeps the size of its set, so D is a whole number divided by the product of the sizes.
        size_R, size_S = draw_KR.shape[1], draw_KS.shape[1]
        step = np.concatenate([draw_KR * size_S, -draw_KS * size_R], axis=1)[:, order]
        distance: Floats = np.abs(np.cumsum(step, axis=1)[:, last]).max(1) / (size_R * size_S)
        return distance


@dataclass(frozen=True)
class _OfMeans:
    """A statistic of several means."""

    parts: Sequence[Mean]

    def scored(self) -> tuple[int, int]:
        """Sums over the parts."""
        pairs = [part.scored() for part in self.parts]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def _values(self) -> list[float]:
        """The values of the parts; empty if a part has none."""
        known = [value for part in self.parts if (value := part.value()) is not None]
        return known if len(known) == len(self.parts) else []


@dataclass(frozen=True)
class Average(_OfMeans):
    """Mean of means, each with the same weight. The parts are of different rows."""

    def value(self) -> float | None:
        """The mean of the parts' values; None if a part has none."""
        values = self._values()
        return sum(values) / len(values) if values else None

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """The rows of each part are drawn separately."""
        mean: Floats = np.stack([part.resample(rng, count) for part in self.parts]).mean(0)
        return mean


@dataclass(frozen=True)
class HarmonicMean(_OfMeans):
    """Harmonic mean of means; 0 if one of them is 0 or less.

    `group` has the rows of each part; parts of one group have the same rows and are drawn together.
    """

    group: Sequence[Any]

    def value(self) -> float | None:
        """The harmonic mean of the parts' values; None if a part has none."""
        values = self._values()
        return float(_harmonic(np.array([values]))[0]) if values else None

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Joint draws: all parts of a group use the same rows."""
        draws: dict[Any, Ints] = {}
        for part, group in zip(self.parts, self.group, strict=True):
            if group not in draws:
                draws[group] = draw(rng, count, len(part.score_R))
        pairs = zip(self.parts, self.group, strict=True)
        return _harmonic(np.stack([part.weighted(draws[group]) for part, group in pairs], axis=1))


@dataclass(frozen=True)
class Mapped:
    """A monotone function of another statistic.

    Attributes:
        inner: the statistic.
        function: from array to array, elementwise.
    """

    inner: Statistic
    function: Callable[[Floats], Floats]

    def value(self) -> float | None:
        """The function of the inner value."""
        value = self.inner.value()
        return None if value is None else float(self.function(np.array([value]))[0])

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """The function of each inner value."""
        return self.function(self.inner.resample(rng, count))

    def scored(self) -> tuple[int, int]:
        """Those of the inner statistic."""
        return self.inner.scored()


def _harmonic(value_KP: Floats) -> Floats:
    positive_K = np.all(value_KP > 0, axis=1)
    safe_KP = np.where(positive_K[:, None], value_KP, 1.0)
    mean: Floats = np.where(
        positive_K,
        value_KP.shape[1] / (1 / safe_KP).sum(1),
        np.where(np.any(np.isnan(value_KP), axis=1), np.nan, 0.0),
    )
    return mean
