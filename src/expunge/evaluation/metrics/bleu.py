"""Overlap of a continuation with the text that the model should not know."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from expunge.core.errors import MissingExtraError
from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import GenerationTable


def bleu(generations: GenerationTable) -> Result:
    """BLEU (Papineni et al. 2002) of a greedy continuation; mean over rows, not BLEU of the corpus.

    By the package sacrebleu with its defaults for sentences. Its range 0 to 100 is divided by 100: range 0 to
    1. On rows to forget, lower is better. The whole continuation counts; nothing is cut from it. An empty
    continuation scores 0; a row without text is unscored. Null without the package.
    """
    try:
        scorer = _scorer()
    except MissingExtraError as error:
        return Result.missing(f"{error.faults[0].message}: {error.faults[0].hint}")
    examples = generations.examples
    scores = [
        scorer.sentence_score(text, [target]).score / 100 if target.strip() else np.nan
        for text, target in zip(generations.generation, examples.target_text, strict=True)
    ]
    score_R = np.array(scores)
    columns: dict[str, Any] = {
        "score": score_R,
        "input": generations.prompt,
        "ground_truth": examples.target_text,
        "generation": generations.generation,
    }
    return Result(Mean(score_R), columns=columns, row_ids=examples.row_ids)


@cache
def _scorer() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise MissingExtraError("sacrebleu", "bleu", "BLEU") from error
    # Needed for short sentences: without it, one missing order of n-grams makes the whole score 0.
    return BLEU(effective_order=True)
