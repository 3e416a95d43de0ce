"""The methods of the SOUL family: the `trainer` of each, the data it reads, and our key for its gamma."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Alternates = Literal["refusals", "random_answers"]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        trainer: the choice of the group `trainer`; None = nothing is trained.
        sides: the sides of the data that it reads.
        alternates: the kind of its alternate answers; None = it reads none.
        keys: SOUL's name of a hyper-parameter -> the key in `trainer.method_args`.
        required: the hyper-parameter that must be given, because SOUL's default of 0 drops a term silently.
        overrides: further choices that it needs.
    """

    trainer: str | None
    sides: tuple[str, ...] = ("forget",)
    alternates: Alternates | None = None
    keys: dict[str, str] = field(default_factory=dict)
    required: str | None = None
    overrides: tuple[str, ...] = ()


BOTH = ("forget", "retain")
# In a composite, SOUL's gamma is the weight of the retain term. Our gamma is the weight of the forget term,
# and our alpha that of the retain term.
RETAIN_WEIGHT = {"gamma": "alpha"}


def _composite(trainer: str, alternates: Alternates | None = None, **keys: str) -> Method:
    return Method(trainer, BOTH, alternates, {**RETAIN_WEIGHT, **keys}, "gamma")


METHODS = {
    "FT": Method("FT", ("retain",)),
    "l1_sparse": Method("l1_sparse", ("retain",), keys={"alpha": "alpha_l1"}),
    "GA": Method("GradAscent"),
    "GA+FT": _composite("GA_FT"),
    "GA+KL": _composite("GA_KL"),
    "CL": Method("CL", alternates="refusals"),
    "CL+FT": _composite("CL_FT", "refusals"),
    "CL+KL": _composite("CL_KL", "refusals"),
    "RL": Method("RL", BOTH, "random_answers"),
    "KL": Method("KL", BOTH, keys={"gamma": "gamma"}, required="gamma"),
    # In SOUL's code, NPO has a retain term with the weight gamma; its default is 0.
    "NPO": Method("NPO", keys={"gamma": "alpha", "beta": "beta"}, overrides=("retain=none",)),
    "NPO+FT": _composite("NPO_FT", beta="beta"),
    "SimNPO+FT": _composite("SimNPO_FT", beta="beta"),
    "GA_FT_epoch": _composite("GA_FT_epoch"),
    "GA_KL_epoch": _composite("GA_KL_epoch"),
    "CL_FT_epoch": _composite("CL_FT_epoch", "refusals"),
    "origin": Method(None, ()),
    "sys": Method(None, ()),
}
