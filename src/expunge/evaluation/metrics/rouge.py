"""Overlap of a generation with the answer."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from expunge.evaluation.results import Result
from expunge.evaluation.statistics import Mean
from expunge.evaluation.tables import GenerationTable

VARIANTS = ("rouge1_recall", "rougeL_f1", "rougeL_recall")
Variant = Literal["rouge1_recall", "rougeL_f1", "rougeL_recall"]


def rouge(generations: GenerationTable, *, variant: Variant = "rougeL_recall") -> Result:
    """ROUGE (Lin 2004) of a greedy generation against the text of the answer; mean over rows.

    By the package rouge-score, with stemmer. TOFU reports rougeL recall, MUSE rougeL F1. Range 0 to 1; on the
    forget set lower is better, elsewhere higher. An empty generation scores 0. A row without words in its
    answer is unscored, because recall divides by their number.

    Args:
        generations: what the model wrote, and the expected text.
        variant: which of the three values is averaged.
    """
    examples = generations.examples
    targets = [text.strip() for text in examples.target_text]
    scores = [_scores(target, text) for target, text in zip(targets, generations.generation, strict=True)]
    columns: dict[str, Any] = {name: np.array([score[name] for score in scores]) for name in VARIANTS}
    score_R = columns[variant]
    columns |= {
        "input": generations.prompt,
        "ground_truth": tuple(targets),
        "generation": tuple(text.strip() for text in generations.generation),
    }
    return Result(Mean(score_R), columns=columns, row_ids=examples.row_ids)


def _scores(target: str, text: str) -> dict[str, float]:
    scorer, tokenizer = _scorer()
    if not tokenizer.tokenize(target):
        return dict.fromkeys(VARIANTS, float("nan"))
    found = scorer.score(target, text)
    return {
        "rouge1_recall": found["rouge1"].recall,
        "rougeL_f1": found["rougeL"].fmeasure,
        "rougeL_recall": found["rougeL"].recall,
    }


@cache
def _scorer() -> tuple[Any, Any]:
    """The scorer and its tokenizer, which stems words."""
    from rouge_score import rouge_scorer, tokenizers

    tokenizer = tokenizers.DefaultTokenizer(use_stemmer=True)
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], tokenizer=tokenizer), tokenizer
