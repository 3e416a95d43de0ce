"""What the model can still do."""

from __future__ import annotations

from expunge.evaluation.results import Result, of_means
from expunge.evaluation.statistics import HarmonicMean


def model_utility(parts: tuple[Result, ...]) -> Result:
    """Harmonic mean of the parts' aggregates; 0 if one of them is 0.

    TOFU, arXiv:2401.06121, section 2.2: nine parts, {retain, real authors, world facts} x {probability (with
    options for the latter two), rougeL recall, truth ratio}. Range 0 to 1, higher is better. Parts of the
    same rows are resampled jointly.
    """
    return of_means(parts, lambda means: HarmonicMean(means, [tuple(part.row_ids) for part in parts]))
