"""`exec/Fine_tune_{tofu,hp,wmdp}.py`: translate their flags to overrides of our configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.core.errors import UserError
from expunge.core.sides import SIDE_NAMES, SideName
from expunge.soul.command import Given
from expunge.soul.models import add_model
from expunge.soul.router import DOMAINS, Routed, hp_files, route
from expunge.soul.writing import assign

DIRECT = {
    "seed": "seed",
    "epochs": "trainer.args.num_train_epochs",
    "max_steps": "trainer.args.max_steps",
    "batch_size": "trainer.args.per_device_train_batch_size",
    "gradient_accumulation_steps": "trainer.args.gradient_accumulation_steps",
    "lr": "trainer.args.learning_rate",
    "weight_decay": "trainer.args.weight_decay",
    "num_warmup_steps": "trainer.args.warmup_steps",
    "ddp_find_unused_parameters": "trainer.args.ddp_find_unused_parameters",
}
LORA = {"lora_r": ("r", 8), "lora_alpha": ("alpha", 16), "lora_dropout": ("dropout", 0.05)}
GROUP = "data/datasets@data.train"


def translate_finetuning(script: str, given: Given, data_root: str) -> tuple[str, list[str], list[str]]:
    """The configuration's name, overrides and notices; faults are added to `given`.

    `script` is tofu, hp or wmdp.
    """
    for flag in ("model_name", "save_dir"):
        if flag not in given.values:
            given.fault(f"--{flag} is not given", f"add --{flag} PATH")
    folder = str(given.get("save_dir", ""))
    overrides = [
        assign("task_name", Path(folder).name or script),
        assign("paths.output_dir", folder),
        "budget=soul_finetune",
    ]
    if "model_name" in given.values:
        overrides += _model(given)
    try:
        overrides += {"tofu": _tofu, "hp": _hp, "wmdp": _wmdp}[script](given, data_root)
    except UserError as error:
        given.faults += error.faults
    overrides += [given.assigned(key, flag) for flag, key in DIRECT.items() if flag in given.values]
    overrides += [
        "trainer.args.logging_steps=10",
        "trainer.args.save_strategy=epoch",
        "trainer.args.save_total_limit=1",
    ]
    return "train", [*overrides, "trainer.args.report_to=none"], given.notices


def _model(given: Given) -> list[str]:
    name = str(given.get("model_name"))
    settings: dict[str, Any] | None = {key: given.get(flag, default) for flag, (key, default) in LORA.items()}
    if settings is not None and settings["r"] == 0:
        settings = None
        given.notices.append(f"{given.typed('lora_r')}: all weights are trained, without an adapter")
    return add_model(given, name, given.get("cache_dir"), settings)


def _tofu(given: Given, data_root: str) -> list[str]:
    subset = str(given.get("subset", "full"))
    if subset == "full":
        return [f"{GROUP}=TOFU_QA_full"]
    side: SideName = "retain" if subset.startswith("retain") else "forget"
    return [f"{GROUP}=TOFU_QA_{side}", assign(f"{side}_split", subset)]


def _hp(given: Given, data_root: str) -> list[str]:
    found = hp_files(data_root) or ["HP_QA"]
    given.notices.append(f"HP: {', '.join(found)}")
    return [f"{GROUP}=[{','.join(found)}]"]


def _wmdp(given: Given, data_root: str) -> list[str]:
    domain = next(name for name in DOMAINS if name.lower() == f"wmdp{given.get('domain', 'cyber')}")
    sides: tuple[SideName, ...] = (given.get("subset"),) if "subset" in given.values else SIDE_NAMES
    routed: list[Routed] = []
    for side in sides:
        found = route(domain, side, data_root, given.get("custom_split_path"))
        if found is not None:
            routed.append(found)
    given.notices += dict.fromkeys(notice for item in routed for notice in item.notices)
    names = [choice for item in routed for choice in item.choices]
    if "custom_split_path" in given.values and len(sides) > 1:
        given.fault(
            "--custom_split_path is given without --subset",
            "choose the rows: add --subset forget or --subset retain",
        )
    values = []
    for item in routed:
        values += [assign(f"data.train.{item.choices[0]}.{key}", value) for key, value in item.values.items()]
    return [f"{GROUP}=[{','.join(dict.fromkeys(names))}]", *values]
