"""Shared by the membership inference attacks: the AUC between two sets of loss-like scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Auc, Mean
from expunge.evaluation.tables import Examples, Floats, TokenTable, row_mean


def attack(forget: Examples, forget_B: Floats, holdout: Examples, holdout_B: Floats) -> Result:
    """The AUC of a loss-like score, given one per example.

    1 = every forget row scores below every holdout row, which no model saw: the model shows that it has seen
    them. 0.5 = no difference.
    """
    score_R, score_S = row_mean(forget.by_row(forget_B)), row_mean(holdout.by_row(holdout_B))
    return attack_of_rows(score_R, forget.row_ids, score_S, holdout.row_ids)


def attack_of_rows(forget_R: Floats, forget_ids: Any, holdout_S: Floats, holdout_ids: Any) -> Result:
    """The same as `attack`, with one score per row."""
    auc = Auc(forget_R, holdout_S)
    parts = {
        "forget": Result(Mean(forget_R), columns={"score": forget_R}, row_ids=forget_ids),
        "holdout": Result(Mean(holdout_S), columns={"score": holdout_S}, row_ids=holdout_ids),
    }
    return Result(auc, parts=parts, facts={"auc": auc.value()}, row_ids=(*forget_ids, *holdout_ids))


def lowest_mean(table: TokenTable, score_M: Floats, k: float) -> Floats:
    """[B] minus the mean of the lowest max(1, floor(k n)) of an example's n token scores; NaN for n = 0.

    The end of the turn is left out.
    """
    return per_example(
        table, score_M, lambda score_N: -float(np.sort(score_N)[: max(1, int(len(score_N) * k))].mean())
    )


def per_example(table: TokenTable, value_M: Floats, function: Callable[[Floats], float]) -> Floats:
    """[B] a function of each example's token values without the end of the turn; NaN if none is left."""
    return np.array([function(value_N) if len(value_N) else np.nan for value_N in table.pieces(value_M)])
