"""Checks of the `difficulty` section: how forget rows are scored, and how a run orders them by score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.method import losses_of
from expunge.core.annotations import Type, type_of
from expunge.core.binding import Option
from expunge.core.errors import compiled
from expunge.core.handlers import read_signature
from expunge.core.run_dir import SCORES_FILE

SCORER, ORDER = "expunge.influence.row_scores:score_rows", "expunge.training.score_order:score_order"
KEY = "difficulty"
"""The key of the bound scorer; the keywords of the order are options beside its own."""
OWN = {"path": Option(None, Type("str")), "save_gradient": Option(True, Type("bool"))}
"""The options of the file of scores."""
ADVICE = {
    "loss": "at the start, NPO ranks as nll with reduction=token_sum, and SimNPO ranks as neither loss",
    "order": "a high score forgets first, so score_desc begins with the rows that are forgotten fast",
}
MAKE = "to write it, use `expunge score` instead of `expunge unlearn`, with the same overrides"


def check_difficulty(check: Checking) -> None:
    """Check the section against the signatures of the scorer and the order, and find the file of scores."""
    node = check.cfg.get("difficulty")
    if node is None:
        return
    if not isinstance(node, dict):
        hint = "write difficulty.order=score_desc"
        check.refuse("difficulty", node, "this is a section, not a value", hint)
        return
    given = {name: value for name, value in node.items() if value is not None}
    if given.get("epoch_grad_mode") == "trajectory":
        check.refuse(
            "difficulty.epoch_grad_mode",
            given.pop("epoch_grad_mode"),
            "sums over a training trajectory are not part of this version",
            "leave the key out: the default, frozen, uses the gradient of the start model",
        )
    order = read_signature(ORDER)
    options = {name: Option(order.keyword[name], type_of(order, name)) for name in order.keyword}
    check.bind(KEY, read_signature(SCORER), given, options={**OWN, **options}, advice=ADVICE)
    _params(check, given)
    _selection(check, given)
    if is_used(node):
        _method(check, given)
        _file(check, given)


def is_used(node: dict[str, Any]) -> bool:
    """Whether a run orders or selects its rows by score."""
    return node.get("order") not in (None, "none") or node.get("select") is not None


def _params(check: Checking, given: Mapping[str, Any]) -> None:
    params, path = given.get("params", "auto"), given.get("path")
    with check.noted():
        compiled(str(params), check.typed("difficulty.params", params))
    if path is not None and Path(str(path)).suffix not in (".json", ".jsonl"):
        hint = f"name it {Path(str(path)).name}.json"
        check.refuse("difficulty.path", path, "scores are a .json or a .jsonl file", hint)


def _selection(check: Checking, given: Mapping[str, Any]) -> None:
    """Check that `select`, `k` and an order are given together."""
    if given.get("select") is None:
        for name in ("k", "select_by"):
            if name in given:
                hint = "add difficulty.select=first_k"
                check.refuse(f"difficulty.{name}", given[name], "nothing is selected", hint)
        return
    if "k" not in given:
        check.fault(
            "difficulty.k is not given, and difficulty.select=first_k needs it", "add difficulty.k=ROWS"
        )
    if given.get("order", "none") == "none" and "select_by" not in given:
        hint = "add difficulty.select_by=score_asc (or score_desc), or difficulty.order"
        check.refuse("difficulty.select", given["select"], "first_k needs an order", hint)


def _method(check: Checking, given: dict[str, Any]) -> None:
    """Check that the method reads the forget rows, because their order has no effect otherwise."""
    used = [name for name in ("order", "select") if given.get(name) not in (None, "none")]
    text = check.typed(f"difficulty.{used[0]}", given[used[0]]) if used else ""
    if isinstance(procedure := check.cfg.get("procedure"), dict):
        name = str(procedure.get("handler")).rpartition(":")[2]
        check.fault(
            f"{text}: {name} only finetunes, and finetuning does not order rows by score",
            "leave out the order, or the procedure",
        )
        return
    losses = losses_of(check.cfg)
    sides = {name.removeprefix("ref_").split("_")[0] for loss in losses for name in loss.positional}
    if losses and sides <= {"retain", "parameters"}:
        reason = f"{losses[0].name} does not read the forget rows, so their order changes nothing"
        hint = "leave it out, or choose a method that reads them, such as trainer=NPO"
        check.fault(f"{text}: {reason}", hint)
    if check.cfg.get("trainer.args.dataloader_drop_last") and given.get("order", "none") != "none":
        check.fault(
            f"{text}: with trainer.args.dataloader_drop_last,"
            " the last rows of the order would never be trained on",
            "leave dataloader_drop_last out",
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
