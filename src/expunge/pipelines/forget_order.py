"""The order in which a run takes its forget rows, read from a file of difficulty scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.config.checks.difficulty import KEY, is_used
from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.core.run_dir import RunDir
from expunge.data.datasets import Dataset
from expunge.data.pairs import PairedDataset
from expunge.data.subset import subset
from expunge.influence.score_file import ScoreFile, read_scores
from expunge.methods.objective import Objective
from expunge.pipelines.score import model_facts, scores_path
from expunge.training.order import EpochDataset
from expunge.training.score_order import FORGET_ORDER_FILE, InScoreOrder, ScoreOrder, score_order

log = logging.getLogger(__name__)

SAMPLER = ("order", "select", "k", "select_by")
"""Keys of `difficulty` that select and order the forget rows."""


@dataclass(frozen=True)
class ByScore:
    """How scores select and order the forget rows of a run.

    Attributes:
        scores: the file of scores.
        order: which rows are kept, and their ranks.
        asked: the given keys of `SAMPLER`.
        uids: of the kept forget rows, by position.
    """

    scores: ScoreFile
    order: ScoreOrder
    asked: Mapping[str, Any]
    uids: tuple[str, ...]


def by_score(
    cfg: Config, sides: Mapping[str, Dataset], objective: Objective, notices: list[str]
) -> tuple[dict[str, Dataset], ByScore | None]:
    """The sides with the forget rows that the scores keep, and their order; unchanged if no scores are used.

    Raises:
        UserError: the scores are of other rows, or the method does not read the forget rows.
    """
    if not is_used(cfg.section("difficulty")):
        return dict(sides), None
    if "forget" not in sides or not {"forget", "alternate"} & set(objective.sides):
        raise UserError(
            "difficulty orders the forget rows, but the method does not read them",
            f"leave out {', '.join(f'difficulty.{key}' for key in SAMPLER)}",
        )
    forget = sides["forget"]
    scores = read_scores(scores_path(cfg))
    scores.check_rows(forget.encoded)
    if scores.model.get("fingerprint") != model_facts(cfg)["fingerprint"]:
        notices.append(
            f"{scores.path} was made with another model than the start model ({scores.model.get('name')})"
        )
    chosen = cfg.bound[KEY]
    asked = {name: chosen.options[name] for name in chosen.given if name in SAMPLER}
    order = score_order(scores.by_uid, [row.row_id for row in forget.encoded], **asked)
    if order.kept is not None:
        log.info("keeping %d of %d forget rows, chosen by their scores", len(order.kept), len(forget))
        forget = subset(forget, order.kept)
    uids = tuple(row.row_id for row in forget.encoded)
    return {**sides, "forget": forget}, ByScore(scores, order, asked, uids)


def in_order(
    chosen: ByScore | None, pairs: PairedDataset, run: RunDir, seed: int, epochs: float
) -> EpochDataset:
    """The rows in the order of training; the run folder records the order of the forget rows.

    Raises:
        UserError: the run resumes, and it began with other scores.
    """
    if chosen is None:
        return pairs
    ordered = None if chosen.order.rank is None else InScoreOrder(pairs, chosen.order.rank, seed)
    stored = run.path / FORGET_ORDER_FILE
    if stored.is_file() and read_json(stored).get("sha256") != chosen.scores.sha256:
        raise UserError(
            f"the run in {run.path} began with other scores than those in {chosen.scores.path}",
            "restore the file of scores, choose another output folder, or start again with overwrite=true",
        )
    if run.primary and not stored.is_file():
        drawn = None
        if ordered is not None:
            drawn = [
                [chosen.uids[row] for row in ordered.sequence(epoch)] for epoch in range(math.ceil(epochs))
            ]
        source = {"path": str(chosen.scores.path), "sha256": chosen.scores.sha256}
        record = {**source, **chosen.asked, "kept": chosen.uids, "epochs": drawn}
        write_json(stored, record, indent=None)
    if ordered is None:
        return pairs
    ordered.set_epoch(0)
    return ordered
