"""Share of generations that are language."""

from __future__ import annotations

from expunge.evaluation.results import Result
from expunge.evaluation.tables import GenerationTable


def gibberish(generations: GenerationTable, *, classifier_path: None = None) -> Result:
    """Share of generations that a classifier calls clean. Range 0 to 1, higher is better.

    Always null in this version, which runs no classifier.

    Args:
        generations: what the model wrote.
        classifier_path: the field's key; validation accepts null only.
    """
    return Result.missing("no classifier path")
