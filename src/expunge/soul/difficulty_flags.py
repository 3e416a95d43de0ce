"""SOUL's difficulty flags: score the forget rows, and train on them in the order of their scores."""

from __future__ import annotations

from pathlib import Path

from expunge.soul.command import Given
from expunge.soul.methods import METHODS
from expunge.soul.writing import assign, key_of

ONLY, SAMPLING = "unlearn.compute_difficulty_only", "unlearn.enable_difficulty_sampling"
PATH, ORDER = "unlearn.difficulty_score_path", "unlearn.difficulty_order"
ORDERS = {"asc": "score_asc", "desc": "score_desc"}
SCORED_AS = "GA"
"""Scores are of the model before unlearning, so the method does not matter. GA reads only the forget rows."""


def only_scores(given: Given) -> bool:
    """Whether the command line only computes scores; if so, removes flags of training and evaluation."""
    if not given.get(ONLY):
        return False
    if given.get("unlearn.resume_path") is not None:
        given.fault(
            f"{given.typed(ONLY)} and {given.typed('unlearn.resume_path')} are given together",
            "give the model that computes the scores as --overall.model_name",
        )
    if given.get(SAMPLING):
        given.notices.append(
            f"{given.typed(SAMPLING)} is ignored: the forget rows are scored and nothing is trained"
        )
    weighed = [name for name in given.values if name.rpartition(".")[2] in ("gamma", "alpha", "beta")]
    for name in weighed:
        del given.values[name]
    given.values["unlearn.unlearn_method"] = SCORED_AS
    if not any(key_of(text) == "eval" for text in given.overrides):
        given.overrides = ("eval=null", *given.overrides)
    return True


def add_difficulty(given: Given) -> None:
    """Add the overrides, faults and notices of difficulty to `given`; overrides that the user typed win."""
    method = METHODS[str(given.get("unlearn.unlearn_method", "origin"))]
    trains = method.trainer is not None and given.get("unlearn.resume_path") is None
    scores, sorts = bool(given.get(ONLY)), bool(given.get(SAMPLING)) and not given.get(ONLY)
    read = scores or (sorts and trains)
    unread = [
        flag for flag in (PATH, ORDER) if flag in given.values and not (read and (flag == PATH or sorts))
    ]
    if unread:
        given.notices.append(
            f"{', '.join(f'--{flag}' for flag in unread)}: ignored, because "
            + ("nothing is trained" if sorts else "difficulty sampling is off")
        )
    if not read:
        return
    overrides = [given.assigned("difficulty.path", PATH)] if PATH in given.values else []
    if sorts:
        overrides.append(_order(given))
        _check(given, "forget" in method.sides)
    typed = {key_of(text) for text in given.overrides}
    given.overrides = (*(text for text in overrides if key_of(text) not in typed), *given.overrides)


def _order(given: Given) -> str:
    order = ORDERS[given.get(ORDER, "asc")]
    override = assign("difficulty.order", order)
    given.written[override] = given.typed(ORDER if ORDER in given.values else SAMPLING)
    slow = "slowly" if order == "score_asc" else "fast"
    given.notices.append(
        f"{given.written[override]}: a high score is forgotten first,"
        f" so the rows that are forgotten {slow} come first"
    )
    return override


def _check(given: Given, reads_forget: bool) -> None:
    if not reads_forget:
        name = given.get("unlearn.unlearn_method")
        given.fault(
            f"{given.typed(SAMPLING)}: {name} does not read the forget rows, so their order changes nothing",
            f"leave --{SAMPLING} out",
        )
    path = given.get(PATH)
    if path is not None and not Path(str(path)).expanduser().is_file():
        place = Path(str(path)).expanduser().resolve()
        hint = f"to write it, use the same command line with --{ONLY} 1; looked for {place}"
        given.fault(f"{given.typed(PATH)}: no such file of scores", hint)
