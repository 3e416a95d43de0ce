"""Perplexity of plain text."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mapped, Ratio
from expunge.evaluation.tables import Floats, TokenTable


def perplexity(text: TokenTable) -> Result:
    """exp(sum of nll / number of tokens) over the pieces of a text view, which do not overlap. At least 1, lower is better.

    Args:
        text: tokens of the pieces, every one but the first of a piece a label.
    """
    count_B = np.diff(text.offset_B1).astype(np.float64)
    sum_B = np.bincount(text.example_M, weights=text.nll_M.astype(np.float64), minlength=len(count_B))
    nll_B: Floats = np.where(count_B > 0, sum_B, np.nan)
    return Result(Mapped(Ratio(nll_B, count_B), np.exp), columns={"avg_loss": text.avg_nll_B}, row_ids=text.examples.row_ids)
