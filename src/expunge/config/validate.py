"""Find all faults of a configuration before any download or model load, and report them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.compat import check_compat
from expunge.config.checks.difficulty import check_difficulty
from expunge.config.checks.model import check_model
from expunge.config.checks.parallel import check_parallel
from expunge.config.checks.trainer import check_trainer
from expunge.config.compose import compose_config
from expunge.config.datasets import check_data
from expunge.config.evaluation import check_eval
from expunge.config.procedure import check_procedure
from expunge.config.training_fields import range_of
from expunge.core.annotations import Type
from expunge.core.binding import MISSING
from expunge.core.config import Config
from expunge.core.errors import Faults, UserError, unknown
from expunge.core.layout import EXPUNGE, LAYOUTS
from expunge.core.source import make_importable

MODES = ("finetune", "unlearn", "eval")
SECTIONS = (
    "model", "model.model_args", "model.tokenizer_args", "model.template_args", "model.adapter", "data",
    "data.forget", "data.retain", "data.train", "eval", "collator", "compat", "compat.switches", "paths",
    "trainer", "trainer.args", "trainer.method_args",
)  # fmt: skip
"""Keys whose value is a section; a section comes after the one that holds it."""


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
    return replace(composition.config, bound=check.bound, engine=check.engine)


def checked(cfg: Config, broken: set[str] | None = None) -> Checking:
    """Find every fault of a configuration, and bind the functions that it names.

    What depends on a group in `broken`, whose choice does not exist, is not checked.
    """
    check = Checking(cfg, broken)
    cfg = check.cfg = _with_sections(check)
    for key in _missing(cfg.tree):
        check.fault(
            f"{key} is not given",
            f"add {key}=VALUE" + (", a name for this run" if key == "task_name" else ""),
        )
    mode = cfg.get("mode")
    if mode not in MODES:
        check.record([unknown("mode", str(mode), MODES)])
    _seed(check)
    layout = str(cfg.get("run_layout") or EXPUNGE.name)
    if layout not in LAYOUTS:
        check.record([unknown("run_layout", layout, list(LAYOUTS))])
    if "model" not in check.broken:
        check_model(check)
    if "parallel" not in check.broken:
        check_parallel(check)
    trains = "trainer" in cfg.tree
    if trains and "trainer" not in check.broken:
        check_trainer(check)
    if cfg.get("procedure") is not None and not check.broken & {"procedure", "experiment"}:
        check_procedure(check)
    if trains and not check.broken & {"data", "data/datasets", "experiment"}:
        check_data(check)
    if trains and "trainer" not in check.broken:
        check_difficulty(check)
    if not check.broken & {"eval", "experiment"}:
        check_eval(check)
    if not check.broken & {"compat", "trainer", "eval", "experiment"}:
        check_compat(check)
    return check


def _with_sections(check: Checking) -> Config:
    """The configuration with an empty section for each key whose value should be a section and is not."""
    tree = dict(check.cfg.tree)
    for key in SECTIONS:
        value, advice = Config(tree).get(key), f"write {key}.NAME=VALUE"
        if value is not None and not check.check(key, value, Type("mapping"), advice):
            parent, _, last = key.rpartition(".")
            tree = {**tree, parent: {**tree[parent], last: {}}} if parent else {**tree, last: {}}
    return replace(check.cfg, tree=tree)


def _seed(check: Checking) -> None:
    """Check the seed under the key that was typed: `seed`, or the field's `trainer.args.seed`."""
    typed = any(text.lstrip("+").startswith("trainer.args.seed=") for text in check.cfg.overrides)
    if "seed" in check.cfg.tree:
        hint = Type("int", ranges=range_of("seed"))
        check.check("trainer.args.seed" if typed else "seed", check.cfg.get("seed"), hint, "for example 0")


def _missing(node: Any, key: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{key}.{name}" if key else str(name))
    elif node == MISSING:
        yield key
