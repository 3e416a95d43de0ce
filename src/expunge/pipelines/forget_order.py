"""The order in which a run takes its forget rows, from a file of scores to the trainer's rows."""

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
"""Keys of `difficulty` that say what scores do to the forget rows."""


@dataclass(frozen=True)
class ByScore:
    """What scores do to a run.

    Attributes:
        scores: the file.
        order: kept rows and their places.
        asked: the keys of `difficulty` that say so.
        uids: of the kept forget rows, by position.
    """

    scores: ScoreFile
    order: ScoreOrder
    asked: Mapping[str, Any]
    uids: tuple[str, ...]


def by_score(
    cfg: Config, sides: Mapping[str, Dataset], objective: Objective, notices: list[str]
) -> tuple[dict[str, Dataset], ByScore | None]:
    """The sides with the forget rows that scores keep, and their order; unchanged if no scores are used.

    Raises:
        UserError: scores of other rows, or a method that does not read the forget rows.
    """
    if not is_used(cfg.section("difficulty")):
        return dict(sides), None
    if "forget" not in sides or not {"forget", "alternate"} & set(objective.sides):
        raise UserError(
            "difficulty: the method does not read the forget rows, so their order changes nothing",
            "leave difficulty.order out",
        )
    forget = sides["forget"]
    scores = read_scores(scores_path(cfg))
    scores.check_rows(forget.encoded)
    if scores.model.get("fingerprint") != model_facts(cfg)["fingerprint"]:
        notices.append(
            f"{scores.path} was made with another model ({scores.model.get('name')}): the order is that model's"
        )
    chosen = cfg.bound[KEY]
    asked = {name: chosen.options[name] for name in chosen.given if name in SAMPLER}
    order = score_order(scores.by_uid, [row.row_id for row in forget.encoded], **asked)
    if order.kept is not None:
        log.info("%d of %d forget rows are kept by their scores", len(order.kept), len(forget))
        forget = subset(forget, order.kept)
    return {**sides, "forget": forget}, ByScore(
        scores, order, asked, tuple(row.row_id for row in forget.encoded)
    )


def in_order(
    chosen: ByScore | None, pairs: PairedDataset, run: RunDir, seed: int, epochs: float
) -> EpochDataset:
    """The rows as the trainer takes them; the order of the forget rows is recorded in the run folder.

    Args:
        chosen: what scores do to the run.
        pairs: as drawn.
        run: its folder.
        seed: of the order of items.
        epochs: of the run.

    Raises:
        UserError: the run that goes on began with other scores.
    """
    if chosen is None:
        return pairs
    ordered = None if chosen.order.rank is None else InScoreOrder(pairs, chosen.order.rank, seed)
    stored = run.path / FORGET_ORDER_FILE
    if stored.is_file() and read_json(stored).get("sha256") != chosen.scores.sha256:
        hint = (
            "bring back the file that the run began with, choose another output folder, "
            "or overwrite=true to start again"
        )
        raise UserError(
            f"{chosen.scores.path} is another file of scores than the run in {run.path} began with", hint
        )
    if run.primary and not stored.is_file():
        drawn = (
            [ordered.sequence(epoch) for epoch in range(math.ceil(epochs))] if ordered is not None else None
        )
        record = {
            "path": str(chosen.scores.path),
            "sha256": chosen.scores.sha256,
            **chosen.asked,
            "kept": chosen.uids,
        }
        write_json(
            stored,
            {**record, "epochs": drawn and [[chosen.uids[row] for row in rows] for rows in drawn]},
            indent=None,
        )
    if ordered is None:
        return pairs
    ordered.set_epoch(0)
    return ordered
