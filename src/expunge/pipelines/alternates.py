"""`expunge alternates`: have the model write other answers to the forget questions, for AltPO."""

from __future__ import annotations

import logging
from pathlib import Path

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import write_json
from expunge.models.load import load_model
from expunge.pipelines.assemble import dataset_of, tell, text_of
from expunge.procedures.alternates import PROMPT, sample_alternates

log = logging.getLogger(__name__)


def run(
    cfg: Config, output: Path, *, count: int = 5, temperature: float = 1.0, max_new_tokens: int = 200, prompt: str | None = None
) -> Path:
    """Write alternates for the rows of `data.forget`, sampled from `model`.

    Args:
        cfg: of an unlearning run; its model, `data.forget` and seed are read.
        output: the file to write, JSON.
        count: answers a row.
        temperature: of sampling.
        max_new_tokens: of an answer.
        prompt: what the model is asked; None = `procedures.alternates.PROMPT`.

    Returns:
        The file.

    Raises:
        UserError: the file is there already, `data.forget` is not one data set of questions, or whatever else the user can mend.
    """
    if output.exists() and not cfg.get("overwrite"):
        raise UserError(f"{output} is there already", "name another file, or overwrite=true")
    sets = cfg.section("data.forget")
    if len(sets) != 1:
        raise UserError(f"alternates are made for one data set, and data.forget names {len(sets)}", "choose one")
    notices = list(cfg.notices)
    text = text_of(cfg, notices)
    dataset = dataset_of(cfg, "forget", text)
    assert dataset is not None
    args = next(iter(sets.values())).get("args") or {}
    loaded = load_model(cfg.section("model.model_args"), for_training=False, notices=notices)
    tell(notices, already=cfg.notices)
    found = sample_alternates(
        loaded.model,
        text.template,
        dataset.rows,
        count=count,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        prompt=prompt or PROMPT,
        question_key=args.get("question_key", "question"),
        answer_key=args.get("answer_key", "answer"),
        seed=int(cfg.get("seed", 0)),
    )
    write_json(output, found)
    log.info("%d rows, %d alternates: %s", len(found), sum(len(entry["alternate"]) for entry in found), output)
    return output
