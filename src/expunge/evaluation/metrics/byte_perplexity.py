"""Perplexity of documents, per byte."""

from __future__ import annotations

import numpy as np

from expunge.evaluation.metrics.text_sums import by_size, texts_of
from expunge.evaluation.results import Result
from expunge.evaluation.tables import Floats, TokenTable


def byte_perplexity(documents: TokenTable) -> Result:
    """exp(sum of nll / number of bytes), over all documents. At least 1, lower is better.

    The bytes are those of the document in its file, in UTF-8.
    """
    return by_size(documents, bytes_of(documents), "bytes")


def bytes_of(documents: TokenTable) -> Floats:
    """[R] bytes of each document in UTF-8."""
    size_R: Floats = np.array([len(text.encode()) for text in texts_of(documents)], dtype=np.float64)
    return size_R
