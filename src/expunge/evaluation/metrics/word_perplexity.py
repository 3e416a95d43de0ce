"""Perplexity of documents, per word."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from expunge.evaluation.metrics.text_sums import by_size, texts_of
from expunge.evaluation.results import Result
from expunge.evaluation.tables import TokenTable

COUNTS: Mapping[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "harness": lambda text: len(re.split(r"\s+", text)),
}


def word_perplexity(documents: TokenTable, *, count: Literal["words", "harness"] = "words") -> Result:
    """exp(sum of nll / number of words), over all documents. At least 1, lower is better; comparable between tokenizers.

    The words are those of the document as its file has it, also where another writing of it was scored
    (WikiText), as in lm-evaluation-harness's task `wikitext`, which the numbers published for WikiText-2 come
    from.

    Args:
        documents: tokens of documents in windows.
        count: `words`, what stands between blanks; `harness`, as that task counts: the empty texts before a
            blank at the beginning and after one at the end are words too, up to two a document more.
    """
    sizes = [COUNTS[count](text) for text in texts_of(documents)]
    return by_size(documents, np.array(sizes, dtype=np.float64), "words")
