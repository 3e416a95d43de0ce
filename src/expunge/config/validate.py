"""Find all faults of a configuration before any download or model load, and report them together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.compat import check_compat
from expunge.config.checks.difficulty import check_difficulty
from expunge.config.checks.model import check_model
from expunge.config.checks.parallel import check_parallel
from expunge.config.checks.trainer import OWN_ARGS, check_trainer, training_arguments
from expunge.config.compose import compose_config
from expunge.config.datasets import check_data
from expunge.config.evaluation import check_eval
from expunge.config.procedure import check_procedure
from expunge.core.binding import MISSING
from expunge.core.config import Config
from expunge.core.errors import Faults, UserError, unknown
from expunge.core.layout import EXPUNGE, LAYOUTS
from expunge.core.source import make_importable

MODES = ("finetune", "unlearn", "eval")


def load_config(
    config_name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str | Path] = ()
) -> Config:
    """Compose and validate a configuration: the first step of every command line.

    Returns:
        A configuration without a fault that can be found before loading, with all bound functions.

    Raises:
        UserError: all faults of composing and of validation together.
    """
    make_importable(config_dirs)
    composition = compose_config(config_name, overrides, config_dirs)
    if composition.config is None:
        raise UserError.of(composition.faults)
    check = checked(composition.config, composition.broken)
    faults = Faults()
    faults.record([*composition.faults, *check.faults])
    faults.raise_found()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return replace(composition.config, bound=check.bound, ranks=ranks)


def checked(cfg: Config, broken: set[str] | None = None) -> Checking:
    """Find every fault of a configuration, and bind the functions that it names.

    What depends on a group in `broken`, whose choice does not exist, is not checked.
    """
    check = Checking(cfg, broken)
    for key in _missing(cfg.tree):
        check.fault(
            f"{key} is not given",
            f"add {key}=VALUE" + (", a name for this run" if key == "task_name" else ""),
        )
    mode = cfg.get("mode")
    if mode not in MODES:
        check.record([unknown("mode", str(mode), MODES)])
    check.number("seed", whole=True)
    layout = cfg.get("run_layout") or EXPUNGE.name
    if layout not in LAYOUTS:
        check.record([unknown("run_layout", str(layout), list(LAYOUTS))])
    if "model" not in check.broken:
        check_model(check)
    if "parallel" not in check.broken:
        check_parallel(check)
    trains = "trainer" in cfg.tree
    if trains and "trainer" not in check.broken:
        check_trainer(check)
    if cfg.get("procedure") is not None and not check.broken & {"procedure", "experiment"}:
        names = training_arguments()
        check_procedure(check, (*names, *OWN_ARGS) if names else ())
    if trains and not check.broken & {"data", "data/datasets", "experiment"}:
        check_data(check)
    if trains and "trainer" not in check.broken:
        check_difficulty(check)
    if not check.broken & {"eval", "experiment"}:
        check_eval(check)
    if not check.broken & {"compat", "trainer", "eval", "experiment"}:
        check_compat(check)
    return check


def _missing(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{key}.{name}" if key else str(name))
    elif node == MISSING:
        yield key
