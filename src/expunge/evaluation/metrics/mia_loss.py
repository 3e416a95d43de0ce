"""Membership inference by the loss."""

from __future__ import annotations

from expunge.evaluation.metrics.attack import attack
from expunge.evaluation.results import Result
from expunge.evaluation.tables import TokenTable


def mia_loss(forget: TokenTable, holdout: TokenTable) -> Result:
    """AUC of the mean nll of the answer, with the end of the turn, between forget and holdout rows.

    Yeom et al., arXiv:1709.01604. Range 0 to 1; best is 0.5, or the retain model's value; 1 = forget rows are
    recognised as training data.
    """
    return attack(forget.examples, forget.avg_nll_B, holdout.examples, holdout.avg_nll_B)
