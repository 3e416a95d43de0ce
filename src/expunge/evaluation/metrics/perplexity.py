"""Perplexity of plain text, per token."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.metrics.text_sums import TOO_LARGE, raised, sums_of
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Ratio
from expunge.evaluation.tables import Floats, TokenTable


def perplexity(text: TokenTable) -> Result:
    """exp(sum of nll / number of tokens) over the rows of a text view. At least 1, lower is better.

    Each token counts once. Values of models with different tokenizers are not comparable; those of
    `word_perplexity` and `byte_perplexity` are.

    Args:
        text: tokens of texts, cut into pieces without overlap, or of documents in windows.
    """
    nll_R, count_R = sums_of(text)
    mean_R: Floats = np.divide(nll_R, count_R, out=np.full(len(nll_R), np.nan), where=count_R > 0)
    facts = {"n_tokens": int(count_R.sum())}
    statistic = raised(Ratio(nll_R, count_R))
    reason = TOO_LARGE if statistic is None else None
    return Result(
        statistic, columns={"avg_loss": mean_R}, facts=facts, row_ids=text.examples.row_ids, reason=reason
    )
