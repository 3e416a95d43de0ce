"""Shared by the perplexities: sums over a row's tokens, and sizes of its text."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mapped, Ratio, Statistic
from expunge.evaluation.tables import Floats, TokenTable

TOO_LARGE = "the value is too large for a float; bits_per_byte has the logarithm"


def sums_of(table: TokenTable) -> tuple[Floats, Floats]:
    """([R] sum of nll, NaN for a row without tokens; [R] number of tokens), over all windows of each row."""
    row_B, size = table.examples.row_B, len(table.examples.row_ids)
    count_B = np.diff(table.offset_B1).astype(np.float64)
    sum_B = np.bincount(table.example_M, weights=table.nll_M.astype(np.float64), minlength=len(count_B))
    count_R: Floats = np.bincount(row_B, weights=count_B, minlength=size).astype(np.float64)
    nll_R: Floats = np.where(count_R > 0, np.bincount(row_B, weights=sum_B, minlength=size), np.nan)
    return nll_R, count_R


def texts_of(table: TokenTable) -> list[str]:
    """[R] the text of each row, from its first window."""
    texts = [""] * len(table.examples.row_ids)
    for row, answer, text in zip(
        table.examples.row_B, table.examples.answer_B, table.examples.target_text, strict=True
    ):
        if answer == 0:
            texts[int(row)] = text
    return texts


def by_size(table: TokenTable, size_R: Floats, what: str, base: float | None = None) -> Result:
    """exp(sum of nll / sum of sizes) of documents, in `what`; with a base, its logarithm to the base."""
    nll_R, _ = sums_of(table)
    ratio = Ratio(nll_R, size_R)
    # Not the logarithm of the exponential: that may be infinite.
    statistic = raised(ratio) if base is None else Mapped(ratio, lambda mean: mean / np.log(base))
    columns, facts = {"nll": nll_R, what: size_R}, {f"n_{what}": int(size_R.sum())}
    reason = TOO_LARGE if statistic is None else None
    return Result(statistic, columns=columns, facts=facts, row_ids=table.examples.row_ids, reason=reason)


def raised(mean: Statistic) -> Mapped | None:
    """The exponential of a statistic; None if it is too large for a float, as for a destroyed model."""
    value = mean.value()
    return None if value is not None and value > np.log(np.finfo(np.float64).max) else Mapped(mean, _exp)


def _exp(mean: Floats) -> Floats:
    with np.errstate(over="ignore"):
        found: Floats = np.exp(mean)
    return found
