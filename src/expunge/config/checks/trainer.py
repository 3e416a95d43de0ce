"""Checks of the `trainer` section: the method and its arguments, the retain term, the TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.stepping import check_stepping
from expunge.config.describe import rows_of
from expunge.config.evaluation import metrics_of
from expunge.config.listeners import LISTENERS, bind_listeners
from expunge.config.method import KEY, RETAIN, bind_method, extra_terms, losses_of
from expunge.config.procedure import FINAL, stages_of
from expunge.config.schedulers import EVALUATED
from expunge.config.trainer_args import KEY as KEY_ARGS
from expunge.config.trainer_args import check_together, check_values
from expunge.core.errors import unknown
from expunge.core.handlers import Signature

# Experiments and data sets with alternate answers ("I don't know", sampled), by the data sets that lack them.
ALTERNATES = {
    "MINI": ("unlearn/mini/idk", "MINI_forget_idk", "MINI_forget_altpo"),
    "TOFU": ("unlearn/tofu/idk", "TOFU_QA_idk", "TOFU_QA_forget_altpo"),
}
# Our dataset handlers without alternate answers.
WITHOUT_ALTERNATES = ("expunge.data.datasets:qa", "expunge.data.datasets:text")


def check_trainer(check: Checking) -> None:
    """Check everything about the optimisation that is known before loading."""
    method_args = check.cfg.section(KEY)
    if isinstance(retain := method_args.get("retain"), str) and retain != "none":
        text = check.typed(RETAIN, retain)
        check.fault(
            f"{text}: a retain term is a choice of the group retain",
            "write retain=nll, retain=kl or retain=none",
        )
        method_args["retain"] = None
    own = bind_method(check, check.cfg.get("trainer.handler"), method_args, check.cfg.switches)
    # A procedure states which rows its stages read.
    if own is not None and check.cfg.get("procedure") is None:
        _sides(check, own.signature)
    _training_arguments(check)
    check_stepping(check)
    bind_listeners(check, check.cfg.get(LISTENERS))


def _sides(check: Checking, signature: Signature) -> None:
    """Check that each side that a loss reads has a dataset, and that alternate answers exist if needed."""
    if check.cfg.get("mode") != "unlearn" or check.broken & {"experiment", "data", "data/datasets"}:
        return
    sides = {
        name.removeprefix("ref_").split("_")[0] for loss in losses_of(check.cfg) for name in loss.positional
    }
    for side in sorted(sides & {"forget", "retain"}):
        check.side_is_there(side, signature.name)
    handlers = [
        node.get("handler") for node in check.cfg.section("data.forget").values() if isinstance(node, dict)
    ]
    if "alternate" in sides and handlers and all(handler in WITHOUT_ALTERNATES for handler in handlers):
        _no_alternates(check, signature)


def _no_alternates(check: Checking, signature: Signature) -> None:
    """Report missing alternate answers. If only an extra term reads them, the term can be switched off."""
    typed = check.typed("trainer", signature.name)
    text = f"{typed}: {signature.name} reads alternate answers, and data.forget has none"
    readers = [
        key
        for key, term in extra_terms(signature).items()
        if any("alternate_" in name for name in term.positional)
    ]
    names = " ".join(check.cfg.section("data.forget"))
    own = next((family for family in ALTERNATES if family in names), "")
    experiment, refusals, sampled = ALTERNATES[own or "TOFU"]
    if any("alternate_" in name for name in signature.positional) or not readers:
        hint = f"choose experiment={experiment}, or data/datasets@data.forget={refusals}"
        other = "; for your own rows: handler=QAwithAlternateDataset, which reads args.alternate_key"
        check.fault(text, hint if own else hint + other)
        return
    check.fault(
        text,
        "write them with `expunge alternates --novice-of CONCEPT --output FILE`, then give the file:"
        f" data/datasets@data.forget={sampled} data.forget.{sampled}.args.alternate_path=FILE;"
        f" or switch the term off: trainer.method_args.{readers[0]}=0",
    )


def _training_arguments(check: Checking) -> None:
    args = check.cfg.section(KEY_ARGS)
    # The seed of the run is reported once, for all its parts.
    same = repr(args.get("seed")) == repr(check.cfg.get("seed"))
    check_values(
        check, KEY_ARGS, {name: value for name, value in args.items() if not (same and name == "seed")}
    )
    stages = stages_of(check.cfg)
    evaluates = not stages or FINAL in stages
    check_together(check, KEY_ARGS, args, evaluates=evaluates)
    if evaluates and not check.broken & {"eval", "experiment"}:
        _evaluation(check, args)
    _rows(check, args)
    _checkpoint(check, args.get("resume_from_checkpoint"))


def _evaluation(check: Checking, args: Mapping[str, Any]) -> None:
    """Check that a training that evaluates has a suite, and that the suite has the metric it asks for."""
    strategy, on_start = str(args.get("eval_strategy", "no")), args.get("eval_on_start") is True
    never = strategy not in ("steps", "epoch")
    if never and not on_start:
        return
    suites = [node for node in check.cfg.section("eval").values() if isinstance(node, dict)]
    suites = [node for node in suites if isinstance(node.get("metrics"), dict)]
    if not suites:
        name, off = ("eval_on_start", "false") if never else ("eval_strategy", "no")
        text = check.typed(f"{KEY_ARGS}.{name}", args[name])
        check.fault(
            f"{text}: no evaluation suite is configured",
            f"choose one under `eval`, or set {KEY_ARGS}.{name}={off}",
        )
        return
    metrics = {name: node for suite in suites for name, node in metrics_of(suite).items()}
    known = [
        name for name, node in metrics.items() if not isinstance(node, dict) or node.get("summary", True)
    ]
    asked = args.get("metric_for_best_model")
    follows = args.get("lr_scheduler_type") in EVALUATED
    if asked is None and (args.get("load_best_model_at_end") is True or follows):
        name = "lr_scheduler_type" if follows else "load_best_model_at_end"
        text = check.typed(f"{KEY_ARGS}.{name}", args[name])
        hint = f"add {KEY_ARGS}.metric_for_best_model=NAME; known: {', '.join(sorted(known))}"
        check.fault(f"{text}: it needs metric_for_best_model", hint)
    elif isinstance(asked, str) and asked.removeprefix("eval_") not in known:
        found = unknown("metric in the summary of a suite", asked, known)
        check.fault(f"{check.typed(f'{KEY_ARGS}.metric_for_best_model', asked)}: {found.message}", found.hint)


def _rows(check: Checking, args: Mapping[str, Any]) -> None:
    """Check that `dataloader_drop_last` leaves a batch, if local files state the number of rows."""
    size = args.get("per_device_train_batch_size", 8)
    if args.get("dataloader_drop_last") is not True or not isinstance(size, int) or stages_of(check.cfg):
        return
    side = str(check.cfg.get("data.anchor", "forget")) if check.cfg.get("mode") == "unlearn" else "train"
    rows, batch = rows_of(check.cfg, side), size * check.cfg.ranks
    if rows is not None and rows < batch and check.cfg.section(f"data.{side}"):
        check.fault(
            f"{check.typed(f'{KEY_ARGS}.dataloader_drop_last', True)}: it drops all {rows} rows,"
            f" because one batch has {batch}",
            "leave it out, or take smaller batches",
        )


def _checkpoint(check: Checking, value: Any) -> None:
    if not isinstance(value, str) or value.lower() in ("true", "false"):
        return
    path = Path(value).expanduser()
    text = check.typed(f"{KEY_ARGS}.resume_from_checkpoint", value)
    if not path.is_dir():
        check.fault(
            f"{text}: no such folder", f"looked for {path.resolve()}; a checkpoint is saves/.../checkpoint-N"
        )
