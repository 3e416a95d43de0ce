"""Bits that a model needs per byte of text."""

from __future__ import annotations

from expunge.evaluation.metrics.byte_perplexity import bytes_of
from expunge.evaluation.metrics.text_sums import by_size
from expunge.evaluation.results import Result
from expunge.evaluation.tables import TokenTable


def bits_per_byte(documents: TokenTable) -> Result:
    """Sum of nll / (number of bytes x ln 2), over all documents: log2 of `byte_perplexity`.

    At least 0, lower is better.
    """
    return by_size(documents, bytes_of(documents), "bytes", base=2.0)
