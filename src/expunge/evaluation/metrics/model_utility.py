"""What the model can still do."""

from __future__ import annotations

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import HarmonicMean, Mean


def model_utility(parts: tuple[Result, ...]) -> Result:
    """Harmonic mean of the parts' aggregates; 0 if one of them is 0.

    TOFU, arXiv:2401.06121, section 2.2: nine parts, {retain, real authors, world facts} x {probability (with
    options for the latter two), rougeL recall, truth ratio}. Range 0 to 1, higher is better. Parts of the
    same rows are resampled jointly.

    Args:
        parts: results that are means over rows.
    """
    means = [part.statistic for part in parts if isinstance(part.statistic, Mean)]
    if len(means) < len(parts):
        odd = ", ".join(part.name for part in parts if not isinstance(part.statistic, Mean))
        return Result.missing(f"not a mean over rows: {odd}")
    values = {part.name: part.value for part in parts}
    return Result(HarmonicMean(means, [tuple(part.row_ids) for part in parts]), facts={"parts": values})
