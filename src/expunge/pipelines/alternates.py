"""`expunge alternates`: the model writes other answers to the forget questions, for AltPO and ELM."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from expunge.core.config import Config
from expunge.core.errors import UserError
from expunge.core.files import write_json
from expunge.models.load import load_model
from expunge.pipelines.assemble import dataset_of, log_notices, text_of
from expunge.procedures.novice import novice_alternates
from expunge.procedures.sampled_alternates import PROMPT, sample_alternates

log = logging.getLogger(__name__)


def run(
    cfg: Config,
    output: Path,
    *,
    count: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 200,
    prompt: str | None = None,
    novice_of: str | None = None,
    **steering: Any,
) -> Path:
    """Write alternates for the rows of `data.forget`, sampled from `model`.

    Args:
        cfg: of an unlearning run; its model, `data.forget` and seed are read.
        output: the JSON file to write.
        count: answers per row; None = 5 if sampled, 1 if steered (`novice_of`).
        temperature: sampling temperature.
        max_new_tokens: longest answer.
        prompt: what the model is asked; None = `procedures.sampled_alternates.PROMPT`.
        novice_of: a concept; if given, the answers are steered: they change the subject, as a novice in this
            concept would (`procedures.novice`).
        steering: settings of steered answers: `strength`, `lead`, `expert_prompt`, `novice_prompt`; None =
            the default.

    Returns:
        The file.

    Raises:
        UserError: the file exists, `data.forget` is not exactly one data set of questions, or another fault
            that the user can correct.
    """
    steering = {name: value for name, value in steering.items() if value is not None}
    _check_asked(cfg, output, prompt, novice_of, sorted(steering))
    notices = list(cfg.notices)
    text = text_of(cfg, notices)
    dataset = dataset_of(cfg, "forget", text)
    assert dataset is not None
    args = next(iter(cfg.section("data.forget").values())).get("args") or {}
    loaded = load_model(cfg.section("model.model_args"), for_training=False, notices=notices)
    log_notices(notices, already=cfg.notices)
    settings = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "question_key": args.get("question_key", "question"),
        "answer_key": args.get("answer_key", "answer"),
        "seed": int(cfg.get("seed", 0)),
        **({} if count is None else {"count": count}),
    }
    model, template, rows = loaded.model, text.template, dataset.rows
    if novice_of is None:
        found = sample_alternates(model, template, rows, prompt=prompt or PROMPT, **settings)
    else:
        if "lead" in steering:
            steering["leads"] = (steering.pop("lead"),)
        found = novice_alternates(model, template, rows, concept=novice_of, **settings, **steering)
    write_json(output, found)
    made = sum(len(entry["alternate"]) for entry in found)
    log.info("%d rows, %d alternates: %s", len(found), made, output)
    return output


def _check_asked(
    cfg: Config, output: Path, prompt: str | None, novice_of: str | None, steering: list[str]
) -> None:
    if novice_of is None and steering:
        reason = "only applies to steered answers, and --novice-of is not given"
        raise UserError(f"{' and '.join(steering)} {reason}", "add --novice-of CONCEPT")
    if novice_of is not None and prompt is not None:
        reason = "--prompt and --novice-of cannot be used together: steered answers use no prompt"
        raise UserError(reason, "give one of the two")
    if output.exists() and not cfg.get("overwrite"):
        raise UserError(f"{output} exists already", "name another file, or add overwrite=true")
    if (count := len(cfg.section("data.forget"))) != 1:
        message = f"alternates are made for one data set, but data.forget names {count}"
        raise UserError(message, "choose one data set")
