"""The values of each method on the embedded benchmark besides its defaults and the budget, with reasons.

The values were chosen on the full model and the forget10 rows of seed 100, which no results page reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """How a method is run here.

    Attributes:
        overrides: of the configuration.
        why: the reason, for the page; empty if nothing is set.
        experiment: under `unlearn/mini`.
    """

    overrides: tuple[str, ...] = ()
    why: str = ""
    experiment: str = "default"


BUDGET = ("trainer.args.learning_rate=5e-4", "trainer.args.num_train_epochs=10")
RATE = "its own learning rate is for models a thousand times larger; this is the benchmark's"
WEIGHT = "the retain weight is required"
CENTRE = "the middle layer of two"


def _layer(*layers: int) -> str:
    names = [rf"'model\.layers\.{layer}'" for layer in layers]
    return f"trainer.method_args.module_regex={names[0] if len(names) == 1 else '[' + ','.join(names) + ']'}"


def _composite(experiment: str = "default") -> Setting:
    return Setting(("trainer.method_args.alpha=1.0",), WEIGHT, experiment)


SETTINGS = {
    "AdaptiveRMU": Setting(
        (_layer(0), "trainer.method_args.scale=1.0"), f"{CENTRE}; with scale 5, the default, utility halves"
    ),
    "CL": Setting(experiment="idk"),
    "CL_FT": _composite("idk"),
    "CL_FT_epoch": _composite("idk"),
    "CL_KL": _composite("idk"),
    "DPO": Setting(experiment="idk"),
    "GA_FT": _composite(),
    "GA_FT_epoch": _composite(),
    "GA_KL": _composite(),
    "GA_KL_epoch": _composite(),
    "KL": Setting(("trainer.method_args.gamma=1.0",), "the forget weight is required"),
    "ME_GD": Setting(BUDGET, RATE),
    "NPO": Setting(why="beta .2, alpha 2: see the experiment", experiment="npo"),
    "NPO_FT": _composite(),
    "PDU": Setting(("trainer.method_args.retain_loss_eps=0.3",), "the bound on the retain loss is required"),
    "RL": Setting(
        (
            "data.forget.MINI_forget.handler=expunge.data.random_labels:qa_random_labels",
            "data.forget.MINI_forget.args.answers=${data.retain}",
        ),
        "the forget rows get answers of retain rows",
    ),
    "RMU": Setting(
        (_layer(0), "trainer.method_args.steering_coeff=7.0"),
        f"{CENTRE}; with coefficient 2, the default, a third of the forget probability is left",
    ),
    "RR": Setting(
        (_layer(0, 1), "trainer.args.learning_rate=1e-3", "trainer.args.num_train_epochs=10"),
        "both layers; with the benchmark's rate the states do not turn within 50 steps",
    ),
    "SatImp": Setting(BUDGET, RATE),
    "SatImp_open_unlearning": Setting(BUDGET, RATE),
    "SimNPO": Setting(why="beta 1, gamma 1: see the experiment", experiment="simnpo"),
    "SimNPO_FT": _composite(),
    "UNDIAL": Setting(BUDGET, RATE),
    "WGA": Setting(BUDGET, RATE),
    "retrain": Setting(
        ("budget=mini_finetune",), "the full and the retain model were trained with this budget"
    ),
    "task_vector": Setting(
        ("procedure.args.scale=3.0",), "scale 1, the default, leaves four fifths of the forget probability"
    ),
    "l1_sparse": Setting(("trainer.method_args.alpha_l1=1e-3",), "0, the default, is FT"),
}
READ_ALTERNATES = ("AltPO", "ELM")
"""Methods whose forget rows need a file of alternates; it is made first."""
NOT_RUN = {
    "IdkNLL": "the same method as CL, with another name",
    "RMU_WMDP": "RMU with the published layers, weights and steps for Zephyr-7B; a model of two layers does "
    "not have these layers",
    "finetune": "this is training, not unlearning",
}


CONCEPT = "novels"
STEERED = (
    "the concept is required; one alternate per question, written by `expunge alternates --novice-of novels`"
)


def setting_of(method: str, alternates: Callable[[str | None], Path]) -> Setting:
    """How a method is run.

    Args:
        method: a choice of the group `trainer`.
        alternates: makes a file of alternates: without a concept for AltPO, with a concept for ELM.
    """
    if method not in READ_ALTERNATES:
        return SETTINGS.get(method, Setting())
    path = alternates(CONCEPT if method == "ELM" else None)
    data = (
        "data/datasets@data.forget=MINI_forget_altpo",
        f"data.forget.MINI_forget_altpo.args.alternate_path={path}",
    )
    if method == "ELM":
        return Setting((f"trainer.method_args.concept={CONCEPT}", *data), STEERED)
    return Setting(
        (*data, *BUDGET),
        f"{RATE}, as are the epochs; five alternates per question, sampled by `expunge alternates`",
    )


def shown_values(setting: Setting) -> str:
    """The overrides as the page shows them: without the prefixes."""
    shown: Sequence[str] = [
        text.removeprefix("trainer.")
        .removeprefix("procedure.args.")
        .removeprefix("method_args.")
        .removeprefix("args.")
        for text in setting.overrides
    ]
    return ", ".join(f"`{text}`" for text in shown if "MINI_forget" not in text)
