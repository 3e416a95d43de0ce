"""The resolved configuration of a run, as all rooms see it: plain values, no library type."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from expunge.core.binding import Bound
from expunge.core.engine import DDP, Engine
from expunge.core.fingerprint import fingerprint

# Keys that change what is written about a run, not what it computes. A run with other values of these keys is
# the same run.
NOT_IDENTITY = (
    "eval",
    "paths",
    "overwrite",
    "retain_logs_path",
    "holdout_split",
    "hydra",
    "run_layout",
    "parallel",
)
NOT_IDENTITY_ARGS = (
    "logging_steps", "logging_strategy", "logging_first_step", "logging_dir", "report_to", "run_name",
    "disable_tqdm", "eval_strategy", "eval_steps", "eval_on_start", "resume_from_checkpoint", "output_dir",
    "log_level", "save_total_limit", "dataloader_num_workers",
)  # fmt: skip
CUT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
"""Keys of `trainer.args` that cut a step into micro-batches, with their defaults."""


def value_at(tree: Any, dotted: str, default: Any = None) -> Any:
    """The value at a dotted path in nested mappings; `default` if there is none."""
    for key in dotted.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return default
        tree = tree[key]
    return tree


@dataclass(frozen=True)
class Config:
    """A composed, resolved configuration.

    Attributes:
        tree: nested plain dicts, lists and scalars; every interpolation is resolved.
        overrides: the overrides as typed, for the record.
        notices: remarks on keys that were translated or changed; logged at the start of a run.
        ranks: number of processes that share the run.
        engine: how they share it, by the section `parallel` or by the launcher.
        bound: the functions that validation bound, by dotted key; the run loads and calls exactly these.
    """

    tree: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    notices: tuple[str, ...] = field(default=())
    ranks: int = 1
    engine: Engine = DDP
    bound: Mapping[str, Bound] = field(default_factory=dict, compare=False, repr=False)

    def get(self, dotted: str, default: Any = None) -> Any:
        """The value at a dotted path such as `trainer.args.learning_rate`; `default` if there is none."""
        return value_at(self.tree, dotted, default)

    def section(self, dotted: str) -> dict[str, Any]:
        """A copy of the mapping at a dotted path; empty if there is none."""
        return copy.deepcopy(dict(self.get(dotted) or {}))

    def switches(self, component: str) -> dict[str, Any]:
        """The keyword arguments that `compat` sets for a component: a function, `encode` or `driver`."""
        return dict(self.get(f"compat.switches.{component}") or {})

    def identity(self) -> str:
        """Hash of what the run computes."""
        return fingerprint(self.identity_tree())

    def identity_tree(self) -> dict[str, Any]:
        """What the run computes: a copy of the tree without logging, evaluation and path keys."""
        kept = {key: value for key, value in self.tree.items() if key not in NOT_IDENTITY}
        tree = copy.deepcopy(kept)
        for key in NOT_IDENTITY_ARGS:
            value_at(tree, "trainer.args", {}).pop(key, None)
        args = value_at(tree, "trainer.args", {})
        if args and self.get("compat.switches.driver.normalise") != "micro_batch":
            # How the rows of a step are cut into processes and micro-batches changes no mean over them.
            cut = [args.pop(key, default) for key, default in CUT.items()]
            args["rows_per_step"] = int(cut[0]) * int(cut[1]) * self.ranks
        difficulty = tree.get("difficulty")
        ordered = value_at(difficulty, "order") not in (None, "none")
        if isinstance(difficulty, dict) and not ordered and difficulty.get("select") is None:
            # This run does not use difficulty scores, so their settings do not change what it computes.
            del tree["difficulty"]
        if isinstance(tree.get("procedure"), dict):
            tree["procedure"].pop("keep_stages", None)
        return tree
