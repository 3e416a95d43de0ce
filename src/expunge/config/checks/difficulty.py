"""Checks of the `difficulty` section: how forget rows are scored, and in which order a run takes them by their scores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.trainer import losses_of
from expunge.config.signatures import Signature, read_names, read_signature
from expunge.core.errors import nearest, unknown
from expunge.core.run_dir import SCORES_FILE

SCORER, ORDER = "expunge.influence.difficulty:score_rows", "expunge.training.score_order:score_order"
OWN = {"path": None, "save_gradient": True}
"""What belongs to the file of scores."""
MAKE = "`expunge score` instead of `expunge unlearn`, with the same overrides, makes it"


def check_difficulty(check: Checking) -> None:
    """Hold the section against the signatures of the scorer and of the sampler, and look for the file that a run reads."""
    node = check.cfg.get("difficulty")
    if node is None:
        return
    if not isinstance(node, dict):
        check.fault(
            f"{check.typed('difficulty', node)}: this is a section, not a value",
            "write difficulty.order=score_desc",
        )
        return
    scorer, order = read_signature(SCORER), read_signature(ORDER)
    takes = {**OWN, **scorer.keyword, **order.keyword}
    check.bind("difficulty", node, _both(scorer, order), takes)
    given = {name: value for name, value in node.items() if value is not None}
    _scorer(check, given)
    _sampler(check, given, order)
    if is_used(node):
        _method(check, given)
        _file(check, given)


def is_used(node: dict[str, Any]) -> bool:
    """Whether a run takes its rows by their scores."""
    return node.get("order") not in (None, "none") or node.get("select") is not None


def _both(scorer: Signature, order: Signature) -> Signature:
    return Signature(
        "expunge:difficulty", (), {**scorer.keyword, **order.keyword}, False, scorer.summary, scorer.path
    )


def _scorer(check: Checking, given: dict[str, Any]) -> None:
    rows, module = "expunge.influence.rows", "expunge.influence.difficulty"
    _choice(check, "algorithm", given, read_names(module, "CHOICES"))
    _choice(
        check,
        "loss",
        given,
        read_names(rows, "LOSSES"),
        "NPO at the start ranks as nll with reduction=token_sum; SimNPO as neither",
    )
    _choice(check, "reduction", given, read_names(rows, "REDUCTIONS"))
    if given.get("epoch_grad_mode") == "trajectory":
        text = check.typed("difficulty.epoch_grad_mode", "trajectory")
        check.fault(
            f"{text}: sums along the training of a copy are not part of this version",
            "leave it out: frozen is the start model's",
        )
    else:
        _choice(check, "epoch_grad_mode", given, read_names(module, "EPOCH_GRAD_MODES"))
    for name in ("signed", "save_gradient"):
        if not isinstance(given.get(name, False), bool):
            check.fault(f"{check.typed(f'difficulty.{name}', given[name])}: must be true or false")
    check.number("difficulty.max_tokens", above=0, whole=True)
    params = given.get("params", "auto")
    try:
        re.compile(str(params))
    except re.error as error:
        check.fault(
            f"{check.typed('difficulty.params', params)}: not a regular expression: {error}",
            "write it as in Python's re module",
        )
    path = given.get("path")
    if path is not None and Path(str(path)).suffix not in (".json", ".jsonl"):
        check.fault(
            f"{check.typed('difficulty.path', path)}: scores are a .json or a .jsonl file",
            f"name it {Path(str(path)).name}.json",
        )


def _sampler(check: Checking, given: dict[str, Any], order: Signature) -> None:
    orders = read_names(order.handler.partition(":")[0], "ORDERS")
    _choice(
        check,
        "order",
        given,
        ("none", *orders),
        "a high score forgets first, so score_desc begins with the rows that go fast",
    )
    _choice(check, "select_by", given, orders)
    _choice(check, "select", given, read_names(order.handler.partition(":")[0], "SELECTIONS"))
    check.number("difficulty.k", above=0, whole=True)
    if given.get("select") is None:
        for name in ("k", "select_by"):
            if name in given:
                check.fault(
                    f"{check.typed(f'difficulty.{name}', given[name])}: nothing is selected",
                    "add difficulty.select=first_k",
                )
        return
    if "k" not in given:
        check.fault(
            "difficulty.k is not given, and difficulty.select=first_k needs it", "add difficulty.k=ROWS"
        )
    if given.get("order", "none") == "none" and "select_by" not in given:
        hint = f"add difficulty.select_by={' or '.join(orders)}, or an order"
        check.fault(f"{check.typed('difficulty.select', given['select'])}: first by what?", hint)


def _method(check: Checking, given: dict[str, Any]) -> None:
    """A method or procedure that does not go through the forget rows leaves nothing to order."""
    text = next(
        (
            check.typed(f"difficulty.{name}", given[name])
            for name in ("order", "select")
            if given.get(name) not in (None, "none")
        ),
        "",
    )
    if isinstance(procedure := check.cfg.get("procedure"), dict):
        name = str(procedure.get("handler")).rpartition(":")[2]
        check.fault(
            f"{text}: {name} is made of finetunings, which take their rows as drawn",
            "leave out the order, or the procedure",
        )
        return
    losses = losses_of(check.cfg)
    sides = {name.removeprefix("ref_").split("_")[0] for loss in losses for name in loss.positional} - {
        "parameters"
    }
    if losses and sides <= {"retain"}:
        reason = f"{losses[0].name} does not read the forget rows, so their order changes nothing"
        check.fault(
            f"{text}: {reason}", "leave it out, or choose a method that reads them, such as trainer=NPO"
        )
    if check.cfg.get("trainer.args.dataloader_drop_last") and given.get("order", "none") != "none":
        hint = "leave dataloader_drop_last out"
        check.fault(
            f"{text}: with trainer.args.dataloader_drop_last the last rows of the order would never be trained on",
            hint,
        )


def _file(check: Checking, given: dict[str, Any]) -> None:
    path = given.get("path")
    looked = Path(str(path or Path(str(check.cfg.get("paths.output_dir"))) / SCORES_FILE)).expanduser()
    if not looked.is_file():
        text = (
            f"{check.typed('difficulty.path', path)}: no such"
            if path
            else "difficulty.path is not given, and the run folder holds no"
        )
        check.fault(f"{text} file of scores", f"looked for {looked.resolve()}; {MAKE}")


def _choice(
    check: Checking, name: str, given: dict[str, Any], known: tuple[str, ...], more: str = ""
) -> None:
    value = given.get(name)
    if value is None or value in known:
        return
    if nearest(str(value), known, count=1):
        more = ""
    fault = unknown(name, str(value), known)
    check.fault(
        f"{check.typed(f'difficulty.{name}', value)}: {fault.message}",
        f"{fault.hint}{'; ' + more if more else ''}",
    )
