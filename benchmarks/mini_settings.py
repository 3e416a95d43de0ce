"""What each method is given on the embedded benchmark beyond its signature and the benchmark's budget, and why.

The values were chosen on seed 100, which no results page reports: its full model, its forget10 rows.
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
        why: the reason, for the page; empty where nothing is set.
        experiment: under `unlearn/mini`.
    """

    overrides: tuple[str, ...] = ()
    why: str = ""
    experiment: str = "default"


BUDGET = ("trainer.args.learning_rate=5e-4", "trainer.args.num_train_epochs=10")
RATE = "its own learning rate is for models a thousand times as large: the benchmark's"
WEIGHT = "its retain weight has to be given"
CENTRE = "the layer in the middle of two"


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
    "KL": Setting(("trainer.method_args.gamma=1.0",), "its forget weight has to be given"),
    "ME_GD": Setting(BUDGET, RATE),
    "NPO": Setting(why="beta .2, alpha 2: see the experiment", experiment="npo"),
    "NPO_FT": _composite(),
    "PDU": Setting(
        ("trainer.method_args.retain_loss_eps=0.3",), "the bound on the retain loss has to be given"
    ),
    "RL": Setting(
        (
            "data.forget.MINI_forget.handler=expunge.data.random_labels:qa_random_labels",
            "data.forget.MINI_forget.args.answers=${data.retain}",
        ),
        "the forget rows get answers of retain rows",
    ),
    "RMU": Setting(
        (_layer(0), "trainer.method_args.steering_coeff=7.0"),
        f"{CENTRE}; with coefficient 2, the default, a third is left",
    ),
    "RR": Setting(
        (_layer(0, 1), "trainer.args.learning_rate=1e-3", "trainer.args.num_train_epochs=10"),
        "both layers; at the benchmark's rate the states do not turn within 50 steps",
    ),
    "SatImp": Setting(BUDGET, RATE),
    "SatImp_open_unlearning": Setting(BUDGET, RATE),
    "SimNPO": Setting(why="beta 1, gamma 1: see the experiment", experiment="simnpo"),
    "SimNPO_FT": _composite(),
    "UNDIAL": Setting(BUDGET, RATE),
    "WGA": Setting(BUDGET, RATE),
    "retrain": Setting(("budget=mini_finetune",), "what the full and the retain model were trained with"),
    "task_vector": Setting(
        ("procedure.args.scale=3.0",), "a step of scale 1, the default, leaves four fifths"
    ),
    "l1_sparse": Setting(("trainer.method_args.alpha_l1=1e-3",), "0, the default, is FT"),
}
READ_ALTERNATES = ("AltPO", "ELM")
"""Methods whose forget rows come with a file of alternates, which is made first."""
NOT_RUN = {
    "IdkNLL": "the same method as CL, under the name of another field",
    "RMU_WMDP": "RMU with the layers, weights and steps published for Zephyr-7B, which a model of two layers does not have",
    "finetune": "no unlearning: what a model is trained with",
}


CONCEPT = "novels"
STEERED = "the concept has to be named; one alternate a question, written by `expunge alternates --novice-of novels`"


def setting_of(method: str, alternates: Callable[[str | None], Path]) -> Setting:
    """How a method is run.

    Args:
        method: a choice of the group `trainer`.
        alternates: makes the file of alternates that AltPO reads, and, of a concept, the one that ELM reads.
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
        (*data, *BUDGET), f"{RATE} and epochs; five alternates a question, sampled by `expunge alternates`"
    )


def told(setting: Setting) -> str:
    """The overrides as the page tells them: without the prefixes."""
    shown: Sequence[str] = [
        text.removeprefix("trainer.")
        .removeprefix("procedure.args.")
        .removeprefix("method_args.")
        .removeprefix("args.")
        for text in setting.overrides
    ]
    return ", ".join(f"`{text}`" for text in shown if "MINI_forget" not in text)
