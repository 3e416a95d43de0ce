"""Share of generations that are language."""

from __future__ import annotations

from expunge.core.errors import UserError
from expunge.evaluation.results import Result
from expunge.evaluation.tables import GenerationTable


def gibberish(generations: GenerationTable, *, classifier_path: str | None = None) -> Result:
    """Share of generations that a classifier calls clean. Range 0 to 1, higher is better. Null without a classifier.

    Args:
        generations: what the model wrote.
        classifier_path: folder or hub name of a sequence classifier.

    Raises:
        UserError: a classifier is given; this version runs none.
    """
    if classifier_path is not None:
        told = f"gibberish: classifier_path={classifier_path}, but this version runs no classifier"
        raise UserError(
            told,
            f"leave classifier_path out; the {len(generations.generation)} generations are in the metric forget_Q_A_ROUGE",
        )
    return Result.missing("no classifier path")
