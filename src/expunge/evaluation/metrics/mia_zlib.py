"""Membership inference by the loss over the answer's compressed size."""

from __future__ import annotations

import zlib

import numpy as np

from expunge.evaluation.metrics.attack import attack
from expunge.evaluation.results import Result
from expunge.evaluation.tables import Floats, TokenTable


def mia_zlib(forget: TokenTable, holdout: TokenTable) -> Result:
    """AUC of the answer's mean nll divided by the bytes of its text under zlib.

    Carlini et al., arXiv:2012.07805. Range 0 to 1; best is 0.5, or the retain model's value.
    """
    return attack(forget.examples, _scores(forget), holdout.examples, _scores(holdout))


def _scores(table: TokenTable) -> Floats:
    size_B = np.array([len(zlib.compress(text.strip().encode())) for text in table.examples.target_text])
    score_B: Floats = table.avg_nll_B / size_B
    return score_B
