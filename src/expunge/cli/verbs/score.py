"""`expunge score`: score how hard each forget row is to forget."""

from __future__ import annotations

import argparse

from expunge.cli.verb import Verb, begin

HELP = """\
Writes saves/unlearn/NAME/difficulty_scores.json, or the file of difficulty.path. For each forget row it has
the loss and the projection of the row's gradient on the gradient of the whole forget set
(score = |projection|), both for the model before unlearning.

To first order, a row with a HIGH score is forgotten FIRST: "ascending = easy first" is wrong. So
difficulty.order=score_desc begins an epoch with the rows that are forgotten fast, score_asc with the rows
that are forgotten slowly.

Keys of the scores: difficulty.{path, algorithm: auto|naive|jvp|ghost|lora, reduction: token_mean|token_sum,
params: auto|all|lora|REGEX, signed, max_tokens, save_gradient}
Keys of a run that uses them: difficulty.{order: none|score_asc|score_desc, select: first_k, k, select_by}

Example:
  expunge score experiment=unlearn/tofu/default forget_split=forget10 task_name=npo
      difficulty.path=saves/scores10.json
  expunge unlearn experiment=unlearn/tofu/default trainer=NPO forget_split=forget10 task_name=npo
      difficulty.path=saves/scores10.json difficulty.order=score_desc
"""


def run(args: argparse.Namespace) -> None:
    """Write the scores."""
    cfg = begin(args)
    from expunge.pipelines import score

    score.run(cfg)


SCORE = Verb(
    "score",
    "score how hard each forget row is to forget, for difficulty.order",
    HELP,
    run,
    config_name="unlearn.yaml",
    # The command line of the run that uses the scores also works here: the use of the scores is switched off.
    adds=(
        "difficulty.order=none",
        "difficulty.select=null",
        "difficulty.k=null",
        "difficulty.select_by=null",
    ),
)
