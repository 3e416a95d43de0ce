"""A suite made ready: everything that an evaluation reads besides the model, read and encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    """What a suite computes, and the rows that it reads. Evaluations of many models may share it.

    Attributes:
        name: it names the files.
        section: of the configuration (`eval.tofu`): `views`, `metrics`, `collectors`, `generation`,
            `batch_size`, `overwrite`, `forget_split`, `retain_logs_path`, `bootstrap: {resamples, seed}`,
            `share_prefixes`, `field_rounding`.
        template: of the models.
        plan: metrics and tables.
        views: the rows; encoded when they are first asked for.
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
        """Whether what an earlier evaluation left is computed again."""
        return bool(self.section.get("overwrite", False))

    @property
    def bootstrap(self) -> tuple[int, int]:
        """Resamples and seed."""
        node = self.section.get("bootstrap") or {}
        return int(node.get("resamples", RESAMPLES)), int(node.get("seed", 0))

    def within(self, longest: int | None) -> Suite:
        """The suite for a model that takes so many tokens; what that does not change stays encoded."""
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
    """Read what a suite reads, the model aside. A fault after hours of training would come late.

    Args:
        name: of the suite.
        section: of the configuration.
        template: of the model.
        data_root: folder of local data.
        switches: options that `compat` sets for a component: `Config.switches`.
        bound: what validation bound: `Config.bound`; None = the section is bound now.
        longest: tokens that the model takes at most, None = not known yet.
        encode: encode the rows now, which finds the faulty ones.

    Raises:
        UserError: anything in metrics, rows and retain logs that cannot be; all together.
    """
    plan = make_plan(section, switches, key=f"eval.{name}", bound=bound)
    faults: list[Fault] = []
    views = _tried(
        faults,
        lambda: load_views(plan.views, plan.view_names(), template, data_root, switches("encode"), longest),
    )
    if views is not None and encode:
        _tried(faults, views.encode)
    logs = _tried(faults, lambda: _retain_logs(section, name, template))
    if logs is not None and views is not None:
        _tried(faults, lambda: hold_against(logs, plan, views))
    if views is None or faults:
        raise UserError.of(faults)
    return Suite(name, section, template, plan, views, logs)


def _retain_logs(section: Mapping[str, Any], name: str, template: Template) -> RetainLogs | None:
    path = section.get("retain_logs_path")
    if path is None:
        return None
    return RetainLogs.read(path, name, split=section.get("forget_split"), template=template.fingerprint)


def _tried(faults: list[Fault], make: Callable[[], T]) -> T | None:
    """What `make` gives; None where it is refused, and its faults are added."""
    try:
        return make()
    except UserError as error:
        faults += [fault for fault in error.faults if fault not in faults]
        return None
