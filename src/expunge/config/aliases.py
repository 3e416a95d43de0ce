"""Translate the field's old keys, which transformers 5 or this package has renamed; each gives a notice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expunge.config.location import choices
from expunge.config.short_names import DATASETS
from expunge.config.training_fields import no_effect
from expunge.core.config import value_at
from expunge.core.errors import Fault, unknown
from expunge.core.layout import model_folder_of

# TrainingArguments that transformers 5 has renamed. Source: the v5 migration guide, and training_args.py of
# 4.51 and 5.23.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
}
# TrainingArguments that transformers 5 has dropped, and the reason or the replacement.
DROPPED = {
    "logging_dir": "TensorBoard's files are in the run folder; set TENSORBOARD_LOGGING_DIR to move them",
    "group_by_length": "rows come in a random order drawn from (seed, epoch)",
    "overwrite_output_dir": "use overwrite=true to replace a run folder of another configuration",
    "save_safetensors": "weights are always saved as safetensors",
    "half_precision_backend": "only torch's autocast is supported",
    "fp16_backend": "only torch's autocast is supported",
    "fp16_opt_level": "only torch's autocast is supported",
    "include_tokens_per_second": "the progress line shows the rate",
    "jit_mode_eval": "models are not compiled here",
    "use_ipex": "torch already has these kernels",
    "use_mps_device": "the device is detected automatically",
    "tpu_num_cores": "the launcher sets it",
    "tpu_metrics_debug": "use debug",
    "past_index": "it had no effect on these models",
    "mp_parameters": "it was only for SageMaker",
    "ray_scope": "there is no hyper-parameter search",
    "torchdynamo": "models are not compiled here",
    "sharded_ddp": "this version trains in one process or under DDP",
    "dispatch_batches": "this tool distributes the rows to the ranks",
    "split_batches": "this tool distributes the rows to the ranks",
}
# Optimizers of bitsandbytes, and the torch optimizer that takes the same step in full precision.
BITSANDBYTES = {
    "paged_adamw_32bit": "adamw_torch",
    "paged_adamw_8bit": "adamw_torch",
    "paged_adamw": "adamw_torch",
    "adamw_8bit": "adamw_torch",
    "adamw_bnb_8bit": "adamw_torch",
    "rmsprop_bnb": "rmsprop",
    "rmsprop_bnb_8bit": "rmsprop",
    "rmsprop_bnb_32bit": "rmsprop",
}
LOGGERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "neptune": "neptune",
    "swanlab": "swanlab",
}
"""Values of `report_to`, and the package that each value needs."""
EXTRAS = ("tensorboard", "wandb", "trackio")
"""The loggers that an extra of this package installs."""


@dataclass
class Translation:
    """The result of `translate`."""

    notices: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def notice(self, text: str) -> None:
        """Add a notice, once."""
        self.notices += [] if text in self.notices else [text]

    def differ(self, first: str, second: str) -> None:
        """Record that two settings of one thing have different values."""
        self.faults.append(Fault(f"{first} and {second} differ", "give one of the two"))


def installed(package: str) -> bool:
    """Whether a top-level package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def translate(
    tree: dict[str, Any], typed: set[str], roots: Sequence[Path], has: Callable[[str], bool] = installed
) -> Translation:
    """Rewrite old keys of a resolved tree in place.

    Args:
        tree: the resolved tree; changed.
        typed: the keys on the command line; they win over those of the YAML.
        roots: the configs folders, for the names of choices.
        has: whether an optional package is installed.

    Returns:
        The notices and faults.
    """
    out = Translation()
    _root(tree, typed, out)
    _model(_at(tree, "model.model_args"), typed, out)
    _models_of_runs(tree, out)
    trainer = _at(tree, "trainer")
    if isinstance(trainer.get("args"), dict):
        args = trainer["args"]
        _renamed(args, typed, out)
        _warmup(args, typed, out)
        _packages(args, typed, out, has)
        out.notices += filter(None, [no_effect(args, typed)])
    _retain_term(trainer, typed, roots, out)
    _handlers(tree, trainer, roots, out)
    return out


def fit_machine(args: dict[str, Any], *, cuda: bool, cpu_bf16: bool) -> tuple[dict[str, Any], list[str]]:
    """Adapt TrainingArguments to this machine; the caller knows torch.

    Returns:
        The arguments, and a notice for each that was changed.
    """
    fitted, notices = dict(args), []
    if not cuda and fitted.get("optim") in {"adamw_apex_fused", "adamw_torch_npu_fused", "adamw_torch_xla"}:
        notices.append(
            f"trainer.args.optim={fitted['optim']} needs a device that this machine does not have;"
            " adamw_torch is used instead"
        )
        fitted["optim"] = "adamw_torch"
    needs = dict.fromkeys(("fp16", "fp16_full_eval", "tf32"), "a GPU")
    if not cpu_bf16:
        needs |= dict.fromkeys(("bf16", "bf16_full_eval"), "a GPU or a CPU with bfloat16")
    for key in [key for key in needs if not cuda and fitted.get(key)]:
        notices.append(f"trainer.args.{key} is ignored: it needs {needs[key]}")
        fitted.pop(key)
    return fitted, notices


def _at(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    node = value_at(tree, dotted)
    return node if isinstance(node, dict) else {}


def _root(tree: dict[str, Any], typed: set[str], out: Translation) -> None:
    if tree.get("mode") == "train":
        tree["mode"] = "finetune"
        out.notice("mode=train is read as mode=finetune")
    args = _at(tree, "trainer.args")
    if "seed" not in typed and args.get("seed") is not None:
        tree["seed"] = args["seed"]
    elif args and "trainer.args.seed" not in typed:
        args["seed"] = tree.get("seed")
    elif args and args.get("seed") != tree.get("seed"):
        out.differ(f"seed={tree.get('seed')}", f"trainer.args.seed={args.get('seed')}")
    if tree.get("retain_logs_path") in ("None", "null", ""):
        tree["retain_logs_path"] = None


def _model(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    if "dtype" not in args:
        return
    value = args.pop("dtype")
    if "model.model_args.torch_dtype" in typed and args.get("torch_dtype") != value:
        return out.differ(f"model.model_args.dtype={value}", f"torch_dtype={args['torch_dtype']}")
    args["torch_dtype"] = value
    out.notice(f"model.model_args.dtype={value} is read as torch_dtype={value} (the compute dtype)")


def _models_of_runs(tree: dict[str, Any], out: Translation) -> None:
    """Replace a run's folder by the folder of the model that the run has trained."""
    keys = (
        "model.model_args.pretrained_model_name_or_path",
        "model.tokenizer_args.pretrained_model_name_or_path",
        "model.adapter.path",
    )
    for parent, _, key in (name.rpartition(".") for name in keys):
        node = _at(tree, parent)
        given = node.get(key)
        folder = Path(str(given)).expanduser()
        found = model_folder_of(folder) if given else folder
        if found != folder:
            node[key] = str(found)
            out.notice(f"{given} is the folder of a run; its model is in {found}")


def _renamed(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    for key in [key for key, value in args.items() if value == "None"]:
        args[key] = None
        out.notice(f"trainer.args.{key}=None is read as null")
    for old, new in RENAMED.items():
        if old not in args:
            continue
        value = args.pop(old)
        if f"trainer.args.{new}" in typed:
            out.notice(f"trainer.args.{old} is ignored: {new}, its name in transformers 5, is given as well")
        else:
            args[new] = value
            out.notice(f"trainer.args.{old} is read as {new}, its name in transformers 5")
    for old in [key for key in args if key in DROPPED]:
        args.pop(old)
        out.notice(f"trainer.args.{old} is ignored: transformers 5 dropped it; {DROPPED[old]}")


def _warmup(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    """Translate `warmup_ratio`: in transformers 5 it is a `warmup_steps` below 1.

    Both replace the `warmup_epochs` of a recipe.
    """
    ratio = args.pop("warmup_ratio", None)
    if ratio is not None:
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if not number or not 0 <= ratio < 1:
            message = f"trainer.args.warmup_ratio={ratio}: must be a share of the run, at least 0 and below 1"
            out.faults.append(Fault(message, "for example 0.1"))
            return
        if "trainer.args.warmup_steps" in typed:
            out.notice("trainer.args.warmup_ratio is ignored: warmup_steps is given as well")
        else:
            args["warmup_steps"] = float(ratio)
            out.notice(
                f"trainer.args.warmup_ratio is read as warmup_steps={ratio}, its name in transformers 5"
                " (a value below 1 is a share of the run)"
            )
    if "warmup_steps" in args and "warmup_epochs" in args:
        if "trainer.args.warmup_epochs" in typed:
            message = "trainer.args.warmup_epochs and warmup_steps (or warmup_ratio) are both given"
            out.faults.append(Fault(message, "give one of them"))
        else:
            args.pop("warmup_epochs")
            out.notice("the recipe's warmup_epochs is ignored: warmup_steps (or warmup_ratio) is given")


def _packages(args: dict[str, Any], typed: set[str], out: Translation, has: Callable[[str], bool]) -> None:
    """Replace what is not installed. A missing logger is a fault if the user typed it, else it is dropped."""
    optim = args.get("optim")
    if optim in BITSANDBYTES and not has("bitsandbytes"):
        args["optim"] = BITSANDBYTES[optim]
        out.notice(
            f'trainer.args.optim={optim} needs bitsandbytes (pip install "expunge[quantized]");'
            f" {args['optim']} is used instead"
        )
    wanted = args.get("report_to")
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    absent = [name for name in names if name in LOGGERS and not has(LOGGERS[name])]
    if absent and "trainer.args.report_to" in typed:
        out.faults += [missing_logger(name, f"trainer.args.report_to={name}") for name in absent]
    elif absent:
        kept = [name for name in names if name not in absent]
        args["report_to"] = kept or "none"
        out.notice(
            f"trainer.args.report_to: {', '.join(absent)} is not installed;"
            " the run logs to the console and to its log file"
        )


def missing_logger(name: str, typed: str) -> Fault:
    """The fault of a logger whose package is not installed."""
    package = f'"expunge[{name}]"' if name in EXTRAS else LOGGERS[name].replace("_", "-")
    return Fault(
        f"{typed} needs the package {LOGGERS[name]!r}, which is not installed", f"pip install {package}"
    )


def _retain_term(trainer: dict[str, Any], typed: set[str], roots: Sequence[Path], out: Translation) -> None:
    """Translate the field's key `method_args.retain_loss_type=KL` to the choice `retain=kl`."""
    method_args = trainer.get("method_args")
    if not isinstance(method_args, dict) or "retain_loss_type" not in method_args:
        return
    name = method_args.pop("retain_loss_type")
    files = choices(roots, "retain")
    choice = str(name).lower()
    if choice not in files:
        out.faults.append(unknown("retain term", str(name), [item.upper() for item in files]))
        return
    term = OmegaConf.to_container(OmegaConf.load(files[choice]))
    assert isinstance(term, dict)
    chosen = method_args.get("retain")
    if isinstance(chosen, dict) and chosen.get("handler") != term["retain"]["handler"]:
        typed_first = f"trainer.method_args.retain_loss_type={name}"
        return out.differ(typed_first, f"retain={chosen.get('handler')}")
    method_args["retain"] = {**term["retain"], **(chosen or {})}
    out.notice(f"trainer.method_args.retain_loss_type={name} is read as retain={choice}")


def _handlers(tree: dict[str, Any], trainer: dict[str, Any], roots: Sequence[Path], out: Translation) -> None:
    """Translate the class names in open-unlearning's files to `module:function`."""
    name = trainer.get("handler")
    if isinstance(name, str) and ":" not in name:
        aliases = {"FinetuneTrainer": "finetune"}
        path = choices(roots, "trainer").get(aliases.get(name, name))
        handler = OmegaConf.to_container(OmegaConf.load(path)).get("handler") if path else None  # type: ignore[union-attr]
        if isinstance(handler, str) and ":" in handler:
            trainer["handler"] = handler
            out.notice(f"trainer.handler={name} is read as {handler}")
    for side, sets in _at(tree, "data").items():
        for dataset, node in sets.items() if isinstance(sets, dict) else ():
            if isinstance(node, dict) and (name := node.get("handler")) in DATASETS:
                out.notice(f"data.{side}.{dataset}.handler={name} is read as {DATASETS[name]}")
                node["handler"] = DATASETS[name]
