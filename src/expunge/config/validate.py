"""Find all faults of a configuration before any download or model load, and report them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.config.checks.checking import Checking
from expunge.config.checks.compat import check_compat
from expunge.config.checks.data import check_data
from expunge.config.checks.difficulty import check_difficulty
from expunge.config.checks.evaluation import check_eval
from expunge.config.checks.model import check_model
from expunge.config.checks.procedure import check_procedure
from expunge.config.checks.trainer import check_trainer
from expunge.config.compose import MISSING, compose_all
from expunge.config.training_fields import range_of
from expunge.core.annotations import Type
from expunge.core.config import Config
from expunge.core.errors import Fault, UserError, unknown
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

    Args:
        config_name: a YAML file at the top of the configs.
        overrides: the overrides as typed.
        config_dirs: the user's folders with further choices; modules beside them become importable.

    Returns:
        A configuration without a fault that can be found before loading, with all bound functions.

    Raises:
        UserError: all faults of composing and of validation together.
    """
    make_importable(config_dirs)
    composition = compose_all(config_name, overrides, config_dirs)
    faults, cfg = list(composition.faults), composition.config
    if cfg is not None:
        check = checked(cfg, composition.broken)
        faults += [fault for fault in check.faults if fault not in faults]
        cfg = replace(cfg, bound=check.bound)
    if faults or cfg is None:
        raise UserError.of(faults)
    return cfg


def find_faults(cfg: Config, broken: set[str] | None = None) -> list[Fault]:
    """The faults of a configuration; see `checked`."""
    return checked(cfg, broken).faults


def checked(cfg: Config, broken: set[str] | None = None) -> Checking:
    """Find every fault of a configuration, and bind the functions that it names.

    Args:
        cfg: the composed and resolved configuration.
        broken: groups whose choice does not exist; what depends on them is not checked.

    Returns:
        The faults, and the functions bound without a fault.
    """
    check = Checking(cfg=cfg, broken=broken or set())
    cfg = check.cfg = _with_sections(check)
    for key in _missing(cfg.tree):
        check.fault(
            f"{key} is not given",
            f"add {key}=VALUE" + (", a name for this run" if key == "task_name" else ""),
        )
    mode = cfg.get("mode")
    if mode not in MODES:
        check.faults.append(unknown("mode", str(mode), MODES))
    _seed(check)
    layout = str(cfg.get("run_layout") or EXPUNGE.name)
    if layout not in LAYOUTS:
        check.faults.append(unknown("run_layout", layout, list(LAYOUTS)))
    if "model" not in check.broken:
        check_model(check)
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
