"""A prepared suite: everything that an evaluation needs besides the model, read and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from expunge.core.binding import Bound, Switches
from expunge.core.errors import Fault, UserError
from expunge.data.template import Template
from expunge.evaluation.plan import Plan, make_plan
from expunge.evaluation.reference_rows import hold_against
from expunge.evaluation.retain_logs import RetainLogs
from expunge.evaluation.view_rows import load_views
from expunge.evaluation.views import Views

RESAMPLES = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Suite:
    """What a suite computes, and the rows that it reads. Evaluations of several models may share it.

    Attributes:
        name: of the suite and of its files.
        section: of the configuration (`eval.tofu`): `views`, `metrics`, `collectors`, `generation`,
            `batch_size`, `overwrite`, `forget_split`, `retain_logs_path`, `bootstrap: {resamples, seed}`,
            `share_prefixes`, `field_rounding`.
        template: of the models.
        plan: metrics and tables.
        views: the rows; they are encoded at first use.
        logs: the retain model's evaluation.
    """

    name: str
    section: Mapping[str, Any]
    template: Template
    plan: Plan
    views: Views
    logs: RetainLogs | None

    @property
    def overwrite(self) -> bool:
        """Whether the results of an earlier evaluation are computed again."""
        return bool(self.section.get("overwrite", False))

    @property
    def bootstrap(self) -> tuple[int, int]:
        """Number of resamples, and seed."""
        node = self.section.get("bootstrap") or {}
        return int(node.get("resamples", RESAMPLES)), int(node.get("seed", 0))

    def within(self, longest: int | None) -> Suite:
        """The suite for a model with this maximum of tokens; unchanged views stay encoded."""
        return replace(self, views=self.views.within(longest))


def prepare_suite(
    name: str,
    section: Mapping[str, Any],
    *,
    template: Template,
    data_root: Path | None,
    switches: Switches = lambda _: {},
    bound: Mapping[str, Bound] | None = None,
    longest: int | None = None,
    encode: bool = False,
) -> Suite:
    """Read everything that a suite needs besides the model, so that faults show before a long training.

    Args:
        name: of the suite.
        section: of the configuration.
        template: of the model.
        data_root: folder of local data.
        switches: options that `compat` sets for a component: `Config.switches`.
        bound: what validation bound: `Config.bound`; None = the section is bound now.
        longest: maximum number of tokens of the model, None = not known yet.
        encode: encode the rows now, to find faulty rows.

    Raises:
        UserError: every fault of metrics, rows and retain logs, together.
    """
    plan = make_plan(section, switches, key=f"eval.{name}", bound=bound)
    faults: list[Fault] = []
    views = _tried(
        faults,
        lambda: load_views(plan.views, plan.view_names(), template, data_root, switches("encode"), longest),
    )
    if views is not None and encode:
        _tried(faults, views.encode)
    split, path = section.get("forget_split"), section.get("retain_logs_path")
    read = partial(RetainLogs.read, suite=name, split=split, template=template.fingerprint)
    logs = None if path is None else _tried(faults, lambda: read(path))
    if logs is not None and views is not None:
        _tried(faults, lambda: hold_against(logs, plan, views))
    if views is None or faults:
        raise UserError.of(faults)
    return Suite(name, section, template, plan, views, logs)


def _tried(faults: list[Fault], make: Callable[[], T]) -> T | None:
    """The value of `make()`; None if it raises a `UserError`, whose faults are added."""
    try:
        return make()
    except UserError as error:
        faults += [fault for fault in error.faults if fault not in faults]
        return None
