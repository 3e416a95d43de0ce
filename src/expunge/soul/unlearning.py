"""`exec/unlearn_model.py`: translate its flags to overrides of our configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.config.aliases import LOGGERS, installed, missing_logger
from expunge.config.location import choices, config_roots
from expunge.core.layout import SOUL, layout_of, model_folder_of
from expunge.soul.command import Given
from expunge.soul.data import check_names, data_overrides
from expunge.soul.difficulty_flags import add_difficulty
from expunge.soul.methods import METHODS, Method
from expunge.soul.models import SOUL_LORA, add_model
from expunge.soul.suites import suite_overrides
from expunge.soul.writing import assign, key_of

# The suites of each task. SOUL runs ppl and few_shots for every task except tofu.
SUITES = {
    "tofu": ("tofu",),
    "wmdp": ("ppl", "few_shots", "wmdp"),
    "copyright": ("ppl", "few_shots", "copyright"),
    "toxic": ("ppl", "few_shots", "toxicity"),
}
# Flags whose value is assigned to one key unchanged.
DIRECT = {
    "unlearn.lr": "trainer.args.learning_rate",
    "unlearn.num_epochs": "trainer.args.num_train_epochs",
    "unlearn.max_steps": "trainer.args.max_steps",
    "unlearn.weight_decay": "trainer.args.weight_decay",
    "unlearn.gradient_accumulation_steps": "trainer.args.gradient_accumulation_steps",
    "dataset.batch_size": "trainer.args.per_device_train_batch_size",
}
SOPHIA = {"betas_low": 0.9, "betas_high": 0.95, "rho": 0.03}


def translate_unlearning(
    given: Given, data_root: str, config_dirs: tuple[str, ...] = ()
) -> tuple[str, list[str], list[str]]:
    """The configuration's name, overrides and notices; faults are added to `given`."""
    name = str(given.get("unlearn.unlearn_method", "origin"))
    method = METHODS[name]
    resumed = given.get("unlearn.resume_path")
    add_difficulty(given)
    if "overall.model_name" not in given.values and resumed is None:
        given.fault(
            "--overall.model_name is not given",
            "add --overall.model_name NAME: a model on the hub, or a local model folder",
        )
    if "unlearn.unlearn_method" not in given.values and resumed is None:
        given.notices.append("--unlearn.unlearn_method is not given: it is origin, so nothing is trained")
    trains = method.trainer is not None and resumed is None
    overrides = _run(given, name, trains) + _model(given, trains, name == "sys")
    overrides += _tasks(given, data_root, config_dirs)
    if trains:
        overrides += ["budget=soul", *_trainer(given, name, method), *_optimizer(given)]
        overrides += data_overrides(given, name, method, data_root)
    else:
        overrides += _evaluated_split(given)
        check_names(given, data_root)
        unread = [key for key in DIRECT if key in given.values] if resumed is None else []
        if unread:
            ignored = ", ".join(f"--{key}" for key in unread)
            given.notices.append(f"{ignored}: ignored, because {name} trains nothing")
    return "unlearn" if trains else "eval", overrides, given.notices


def _run(given: Given, method: str, trains: bool) -> list[str]:
    """Name, folder, seed and loggers of the run."""
    logger = given.get("overall.logger", "none")
    root = given.get(f"logger.{logger}.root", given.get("logger.root", "files/logs"))
    name = given.get("logger.name")
    if name is None:
        name = _made_name(given, method if trains else f"{method}_eval")
        if "overall.save_dir" not in given.values:
            given.notices.append(f"--logger.name is not given: the run's name is {name}")
    folder = str(given.get("overall.save_dir", f"{str(root).rstrip('/')}/{name}"))
    if _holds(folder, given.get("unlearn.resume_path")):
        # SOUL writes the evaluation into the folder of the training run; here each run has its own folder.
        name, folder = f"{name}_eval", f"{folder.rstrip('/')}_eval"
        given.notices.append(
            f"{given.typed('unlearn.resume_path')} is the model of this run;"
            f" its evaluation is written to {folder}"
        )
    overrides = [
        assign("task_name", str(name)),
        assign("paths.output_dir", folder),
        f"run_layout={SOUL.name}",
    ]
    if "overall.seed" in given.values:
        overrides.append(assign("seed", given.get("overall.seed")))
    return overrides + (_records(given, logger) if trains else [])


def _made_name(given: Given, method: str) -> str:
    """The default name of a run. Unlike SOUL's, it does not contain the time.

    With the time, the ranks of a run would have different names, and the same command could not resume.
    """
    if given.get("unlearn.resume_path") is not None:
        resumed = Path(str(given.get("unlearn.resume_path"))).expanduser()
        return f"{(_run_of(resumed) or resumed).name}_eval"
    parts = [method, given.get("dataset.forget_dataset_name", ""), f"seed{given.get('overall.seed', 0)}"]
    return "_".join(Path(str(part)).stem.replace("+", "_") for part in parts if part)


def _records(given: Given, logger: str) -> list[str]:
    """The logging and saving of a training run."""
    if logger in LOGGERS and not installed(LOGGERS[logger]):
        fault = missing_logger(logger, given.typed("overall.logger"))
        given.fault(fault.message, fault.hint)
    # As in SOUL: twenty records per run, and one checkpoint at the end of each epoch, so that a run that was
    # killed can be resumed.
    return [
        assign("trainer.args.report_to", "none" if logger in ("json", "none") else logger),
        "trainer.args.logging_steps=0.05",
        "trainer.args.save_strategy=epoch",
        "trainer.args.save_total_limit=1",
    ]


def _run_of(folder: Path) -> Path | None:
    """The folder of the run to which a path belongs: the path or a folder above it; None without a run."""
    return next((place for place in (folder, *folder.parents[:2]) if layout_of(place) is not None), None)


def _holds(folder: str, resumed: Any) -> bool:
    """Whether the run in `folder` trained the model that is evaluated."""
    run = _run_of(Path(str(resumed)).expanduser()) if resumed is not None else None
    return run is not None and run.resolve() == Path(folder).expanduser().resolve()


def _model(given: Given, trains: bool, refuses: bool) -> list[str]:
    name = given.get("unlearn.resume_path") or given.get("overall.model_name")
    if name is None:
        return []
    folder = Path(str(name)).expanduser()
    if model_folder_of(folder) != folder:
        name = model_folder_of(folder)
        given.notices.append(f"{folder} is the folder of a run; its model is in {name}")
    settings = dict(SOUL_LORA) if given.get("unlearn.use_lora") and trains else None
    found = add_model(given, str(name), given.get("overall.cache_dir"), settings, refuses=refuses)
    if trains and not given.get("unlearn.use_lora") and "model/adapter=lora" in found:
        given.fault(
            f"{name} is a LoRA adapter, and --unlearn.use_lora is 0",
            "add --unlearn.use_lora 1 to train it further",
        )
    return found


def _tasks(given: Given, data_root: str, config_dirs: tuple[str, ...]) -> list[str]:
    """The suites of the task. A task without suites is a fault; it is never skipped silently."""
    if any(key_of(text) == "eval" for text in given.overrides):
        return []
    typed = (
        given.typed("unlearn.task_name")
        if "unlearn.task_name" in given.values
        else "--unlearn.task_name is not given, so it is toxic"
    )
    task = str(given.get("unlearn.task_name", "toxic")).replace("hp", "copyright")
    there = choices(config_roots(config_dirs), "eval")
    missing = [suite for suite in SUITES[task] if suite not in there]
    if missing:
        given.fault(
            f"{typed}: this version has no evaluation {', '.join(missing)}",
            f"known: {', '.join(there)}; add eval=null to train without evaluation",
        )
        return []
    chosen = f"eval={SUITES[task][0]}" if len(SUITES[task]) == 1 else f"eval=[{','.join(SUITES[task])}]"
    return [chosen, *suite_overrides(given, task, data_root)]


def _trainer(given: Given, name: str, method: Method) -> list[str]:
    values = {key: _hyper_parameter(given, name, key) for key in ("gamma", "alpha", "beta")}
    for key, value in values.items():
        if value is not None and key not in method.keys:
            given.fault(
                f"{given.typed(f'unlearn.{key}')}: {name} has no {key}",
                f"its hyper-parameters: {', '.join(method.keys) or 'none'}",
            )
    if method.required is not None and values[method.required] is None:
        given.fault(
            f"{name} needs --unlearn.{name}.{method.required}",
            f"add --unlearn.{name}.{method.required} WEIGHT, for example 1.0: it is the weight of a term",
        )
    others = [
        flag
        for flag in given.values
        if flag.count(".") == 2 and flag.split(".")[1] in METHODS and flag.split(".")[1] != name
    ]
    if others:
        ignored = ", ".join(f"--{flag}" for flag in others)
        given.notices.append(f"{ignored}: ignored, because the method is {name}")
    trainer, extra = method.trainer, method.overrides
    if name == "NPO" and values["gamma"] is not None:
        trainer, extra = METHODS["NPO+FT"].trainer, ()
        given.notices.append("NPO with gamma is read as NPO+FT: gamma is the weight of the retain term")
    overrides = [f"trainer={trainer}", *extra]
    for key, ours in method.keys.items():
        if values[key] is not None:
            flag = f"unlearn.{name}.{key}" if f"unlearn.{name}.{key}" in given.values else f"unlearn.{key}"
            overrides.append(given.assigned(f"trainer.method_args.{ours}", flag))
    return overrides + [given.assigned(key, flag) for flag, key in DIRECT.items() if flag in given.values]


def _hyper_parameter(given: Given, name: str, key: str) -> Any:
    own, common = given.get(f"unlearn.{name}.{key}"), given.get(f"unlearn.{key}")
    if own is not None and common is not None and own != common:
        given.fault(
            f"{given.typed(f'unlearn.{name}.{key}')} and {given.typed(f'unlearn.{key}')} differ",
            "give one of the two",
        )
    return common if own is None else own


def _optimizer(given: Given) -> list[str]:
    overrides = []
    if given.get("unlearn.mask_path") is not None:
        overrides += ["mask=file", assign("trainer.mask.path", given.get("unlearn.mask_path"))]
    if not given.get("unlearn.sophia"):
        return overrides
    low, high, rho = (given.get(f"unlearn.sophia_params.{key}", default) for key, default in SOPHIA.items())
    given.notices.append(
        "Sophia is used as in its paper; for the steps of SOUL's code add optimizer=sophia_soul"
    )
    return [
        *overrides,
        "optimizer=sophia",
        assign("trainer.optimizer.betas", [low, high]),
        assign("trainer.optimizer.rho", rho),
    ]


def _evaluated_split(given: Given) -> list[str]:
    """TOFU's subset, for a run that only evaluates."""
    name = str(given.get("dataset.forget_dataset_name", ""))
    return [assign("forget_split", name.partition("_")[2])] if name.startswith("Tofu_") else []
