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
    """exp(sum of nll / number of words), over all documents. At least 1, lower is better.

    Comparable between tokenizers. The words are those of the document in its file, even if its detokenized
    form was scored (WikiText). lm-evaluation-harness's task `wikitext`, the source of published numbers for
    WikiText-2, does the same.

    Args:
        documents: tokens of documents in windows.
        count: `words`, the texts between blanks; `harness`, as that task counts: an empty text before a
            leading blank and after a trailing one also count, up to two more words per document.
    """
    sizes = [COUNTS[count](text) for text in texts_of(documents)]
    return by_size(documents, np.array(sizes, dtype=np.float64), "words")
