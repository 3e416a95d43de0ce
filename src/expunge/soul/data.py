"""The data of `exec/unlearn_model.py`: forget and retain rows, and the selection of forget rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.sides import SIDE_NAMES, SideName
from expunge.soul.command import Given
from expunge.soul.methods import Method
from expunge.soul.router import NOTHING, Routed, route
from expunge.soul.writing import assign

DEFAULTS = {"forget": "SafePku", "retain": "C4"}
RATIO = 200
IDK = "expunge.data.datasets:qa_idk"
RANDOM = "expunge.data.random_labels:qa_random_labels"
GROUP = "data/datasets@data"
# Prefix of the forget data's name -> suffix of SOUL's file of refusals.
REFUSALS = {"Tofu": "_tofu", "HP": "_copyright"}


def data_overrides(given: Given, name: str, method: Method, data_root: str) -> list[str]:
    """Overrides of the `data` section; faults and notices are added to `given`."""
    self_retain = bool(given.get("dataset.self_retain"))
    forget = _side(given, "forget", "forget" in method.sides or self_retain, data_root)
    reads_retain = "retain" in method.sides or (
        name == "NPO" and given.get("unlearn.NPO.gamma", given.get("unlearn.gamma")) is not None
    )
    own = _side(given, "retain", reads_retain, data_root) if not self_retain else None
    retain = _complement(given, forget, data_root) if self_retain else own
    for side in method.sides:
        flag = f"dataset.{side}_dataset_name"
        if str(given.get(flag, DEFAULTS[side])).lower() in NOTHING and not (side == "retain" and self_retain):
            given.fault(
                f"{given.typed(flag)}: {name} reads {side} rows",
                f"give --{flag} a dataset name of the SOUL family, or a local file",
            )
    overrides = [] if forget is None else _written("forget", forget)
    overrides += _written("retain", retain) if retain is not None else [f"~{GROUP}.retain"]
    if forget is None:
        overrides += [f"~{GROUP}.forget", "data.anchor=retain"]
        return overrides
    overrides += _selection(given, forget, retain if self_retain else None)
    overrides += _alternates(given, name, method, forget, retain, data_root)
    task = given.get("unlearn.task_name")
    if (
        task == "tofu"
        and forget.subset is None
        and not any(text.startswith(("eval=", "forget_split=")) for text in given.overrides)
    ):
        given.fault(
            f"{given.typed('unlearn.task_name')}: {_forget_name(given)} is not TOFU",
            "give a forget set such as Tofu_forget10, or add eval=null to train without evaluation",
        )
    return overrides


def _forget_name(given: Given) -> str:
    return str(given.get("dataset.forget_dataset_name", DEFAULTS["forget"]))


def check_names(given: Given, data_root: str) -> None:
    """Record the faults of the given dataset names, for a run that does not read them."""
    for side in SIDE_NAMES:
        _side(given, side, False, data_root)


def _side(given: Given, side: SideName, read: bool, data_root: str) -> Routed | None:
    """The dataset of a side's flag; SOUL's default if it is not given and the method reads this side."""
    flag = f"dataset.{side}_dataset_name"
    if flag not in given.values:
        # A side that is not read needs no files.
        if not read:
            return None
        given.notices.append(f"--{flag} is not given: {DEFAULTS[side]} is used")
    try:
        routed = route(
            str(given.get(flag, DEFAULTS[side])), side, data_root, given.get("dataset.custom_split_path")
        )
    except UserError as error:
        given.faults += error.faults
        return None
    if routed is not None:
        given.notices += routed.notices
    return routed


def _complement(given: Given, forget: Routed | None, data_root: str) -> Routed | None:
    """The forget dataset again, on the retain side."""
    if forget is None:
        return None
    if "dataset.retain_dataset_name" in given.values:
        given.notices.append(
            f"{given.typed('dataset.retain_dataset_name')} is ignored: "
            "with --dataset.self_retain, the rest of the forget set is kept"
        )
    name = _forget_name(given)
    if forget.subset is not None:
        return route(name, "retain", data_root)
    return Routed(forget.choices, dict(forget.values), texts=forget.texts)


def _written(side: SideName, routed: Routed) -> list[str]:
    chosen = routed.choices[0] if len(routed.choices) == 1 else f"[{','.join(routed.choices)}]"
    overrides = [f"{GROUP}.{side}={chosen}", *(assign(key, value) for key, value in routed.root.items())]
    return overrides + [
        assign(f"data.{side}.{routed.choices[0]}.{key}", value) for key, value in routed.values.items()
    ]


def _selection(given: Given, forget: Routed, rest: Routed | None) -> list[str]:
    """Select the rows to forget; with `self_retain`, the other rows are kept."""
    ratio = given.get("dataset.forget_ratio", RATIO)
    if "dataset.forget_ratio" not in given.values:
        given.notices.append(f"--dataset.forget_ratio is not given: {RATIO} rows are forgotten")
    typed = given.typed("dataset.forget_ratio")
    if ratio <= 0 or (ratio > 1 and not float(ratio).is_integer()):
        given.fault(
            f"{typed}: must be a count of rows (a whole number above 1) or a share (above 0, at most 1)",
            "for example 200, or 0.1",
        )
        return []
    if ratio > 1 and len(forget.choices) > 1:
        given.fault(
            f"{typed}: a count cannot be split over {len(forget.choices)} datasets"
            f" ({', '.join(forget.choices)})",
            "give a share of at most 1, or choose one of the datasets",
        )
    select = selection(given)
    if rest is not None and ratio == 1:
        given.fault(
            f"{typed}: with --dataset.self_retain, no rows are left to keep",
            "give a share below 1, or a count",
        )
    overrides = []
    if ratio != 1:
        overrides += [assign(f"data.forget.{choice}.args.select", select) for choice in forget.choices]
    if rest is not None:
        overrides += [
            assign(f"data.retain.{choice}.args.select", {**select, "complement": True})
            for choice in rest.choices
        ]
    return overrides


def selection(given: Given) -> dict[str, Any]:
    """The argument `select` of the forget rows."""
    ratio = given.get("dataset.forget_ratio", RATIO)
    return {
        "ratio": int(ratio) if ratio > 1 else float(ratio),
        "seed": given.get("dataset.dataset_seed", 0),
    }


def _refusals(given: Given, data_root: str) -> str | None:
    """The user's file of SOUL's polite refusals for the forget data; None = no such file."""
    name = _forget_name(given)
    kind = next((end for start, end in REFUSALS.items() if name.startswith(start)), "")
    stems = dict.fromkeys((f"polite_refusal_responses{kind}", "polite_refusal_responses"))
    folder, suffixes = Path(data_root) / "refusals", (".csv", ".json", ".jsonl", ".txt")
    looked = [folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    found = next((place for place in looked if place.is_file()), None)
    if found is None:
        where = ", ".join(f"{folder / stem}.{{csv,json,jsonl,txt}}" for stem in stems)
        given.notices.append(
            f"refusals: there is no {where}; idontknow.jsonl beside the rows or in tofu/ is used,"
            " or, if there is none, the lines of this package"
        )
        return None
    given.notices.append(f"refusals: {found}")
    return str(found)


def _alternates(
    given: Given, name: str, method: Method, forget: Routed, retain: Routed | None, data_root: str
) -> list[str]:
    """The handler that gives the forget rows alternate answers for the method."""
    if method.alternates is None:
        return []
    typed = given.typed("dataset.forget_dataset_name")
    if forget.texts:
        given.fault(
            f"{typed}: {name} needs questions, and these rows are texts without questions",
            "give a dataset of questions and answers",
        )
        return []
    choice = forget.choices[0]
    if method.alternates == "refusals":
        path = _refusals(given, data_root)
        return [
            assign(f"data.forget.{choice}.handler", IDK),
            *([assign(f"data.forget.{choice}.args.idk_path", path)] if path else []),
        ]
    if retain is None or retain.texts:
        given.fault(
            f"{given.typed('dataset.retain_dataset_name')}: {name} draws answers from the retain rows,"
            " and these have no answers",
            "give a dataset of questions and answers for --dataset.retain_dataset_name",
        )
        return []
    return [
        assign(f"data.forget.{choice}.handler", RANDOM),
        f"data.forget.{choice}.args.answers=${{data.retain}}",
    ]
