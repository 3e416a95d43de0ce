"""Keys of the field's command lines and files that transformers 5, or this package, calls otherwise: each translated with a notice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expunge.config.location import choices
from expunge.config.short_names import DATASETS
from expunge.core.errors import Fault, unknown
from expunge.core.layout import model_folder_of

# TrainingArguments that transformers 5 has under another name. Source: the v5 migration guide and
# training_args.py of 4.51 and 5.23.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
}
# TrainingArguments that transformers 5 no longer has, and what takes their place.
DROPPED = {
    "logging_dir": "TensorBoard's files lie in the run folder; the environment variable TENSORBOARD_LOGGING_DIR moves them",
    "group_by_length": "rows come in the order drawn from (seed, epoch)",
    "overwrite_output_dir": "a run folder of another configuration is replaced with overwrite=true",
    "save_safetensors": "weights are always saved as safetensors",
    "half_precision_backend": "torch's own autocast is the only one",
    "fp16_backend": "torch's own autocast is the only one",
    "fp16_opt_level": "torch's own autocast is the only one",
    "include_tokens_per_second": "the rate is in the progress line",
    "jit_mode_eval": "use torch_compile",
    "use_ipex": "torch has these kernels itself",
    "use_mps_device": "the device is found by itself",
    "tpu_num_cores": "the launcher says it",
    "tpu_metrics_debug": "use debug",
    "past_index": "it had no effect on these models",
    "mp_parameters": "it was SageMaker's own",
    "ray_scope": "there is no hyper-parameter search",
    "torchdynamo": "use torch_compile",
    "sharded_ddp": "use fsdp",
    "dispatch_batches": "use accelerator_config",
    "split_batches": "use accelerator_config",
}
# Optimizers that live in bitsandbytes, and the one of torch that takes the same step in full precision.
BITSANDBYTES = {
    "paged_adamw_32bit": "adamw_torch", "paged_adamw_8bit": "adamw_torch", "paged_adamw": "adamw_torch",
    "adamw_8bit": "adamw_torch", "adamw_bnb_8bit": "adamw_torch",
    "rmsprop_bnb": "rmsprop", "rmsprop_bnb_8bit": "rmsprop", "rmsprop_bnb_32bit": "rmsprop",
}  # fmt: skip
LOGGERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
}
"""Values of `report_to` and the package that each needs."""
EXTRAS = ("tensorboard", "wandb", "trackio")
"""Those of them that an extra of this package brings."""


@dataclass
class Translation:
    """What `translate` did to a tree.

    Attributes:
        notices: what was read otherwise than written.
        faults: what could not be translated.
    """

    notices: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def installed(package: str) -> bool:
    """Whether a top-level package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def translate(
    tree: dict[str, Any], typed: set[str], roots: Sequence[Path], has: Callable[[str], bool] = installed
) -> Translation:
    """Rewrite old keys of a resolved tree in place.

    Args:
        tree: the resolved tree; changed.
        typed: the keys given on the command line, which win over those of the YAML.
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
    _retain_term(trainer, typed, roots, out)
    _handlers(tree, trainer, roots, out)
    return out


def fit_machine(args: dict[str, Any], *, cuda: bool, cpu_bf16: bool) -> tuple[dict[str, Any], list[str]]:
    """TrainingArguments that this machine can run; called where torch is known.

    Args:
        args: `trainer.args`.
        cuda: whether a CUDA device is used.
        cpu_bf16: whether the CPU computes in bfloat16 at all.

    Returns:
        The arguments, and a notice for each that was changed.
    """
    fitted, notices = dict(args), []
    if not cuda and fitted.get("optim") in {"adamw_apex_fused", "adamw_torch_npu_fused", "adamw_torch_xla"}:
        notices.append(
            f"trainer.args.optim={fitted['optim']} needs a device that is not here; taken as adamw_torch"
        )
        fitted["optim"] = "adamw_torch"
    for key in ("fp16", "fp16_full_eval", "tf32"):
        if not cuda and fitted.get(key):
            notices.append(f"trainer.args.{key} needs a GPU; left out on this CPU")
            fitted.pop(key)
    for key in ("bf16", "bf16_full_eval"):
        if not cuda and not cpu_bf16 and fitted.get(key):
            notices.append(f"trainer.args.{key} needs a GPU or a CPU with bfloat16; left out")
            fitted.pop(key)
    return fitted, notices


def _at(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    node: Any = tree
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _root(tree: dict[str, Any], typed: set[str], out: Translation) -> None:
    if tree.get("mode") == "train":
        tree["mode"] = "finetune"
        out.notices.append("mode=train is called finetune")
    args = _at(tree, "trainer.args")
    if "seed" not in typed and args.get("seed") is not None:
        tree["seed"] = args["seed"]
    elif args and "trainer.args.seed" not in typed:
        args["seed"] = tree.get("seed")
    elif args and args.get("seed") != tree.get("seed"):
        out.faults.append(
            Fault(
                f"seed={tree.get('seed')} and trainer.args.seed={args.get('seed')} differ",
                "give one of the two",
            )
        )
    if tree.get("retain_logs_path") in ("None", "null", ""):
        tree["retain_logs_path"] = None


def _model(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    if "dtype" not in args:
        return
    value = args.pop("dtype")
    if "model.model_args.torch_dtype" in typed and args.get("torch_dtype") != value:
        out.faults.append(
            Fault(
                f"model.model_args.dtype={value} and torch_dtype={args['torch_dtype']} differ",
                "give one of the two",
            )
        )
        return
    args["torch_dtype"] = value
    out.notices.append(f"model.model_args.dtype={value} is called torch_dtype here (the compute dtype)")


def _models_of_runs(tree: dict[str, Any], out: Translation) -> None:
    """A run's folder stands for the model that the run has trained, wherever in it that is."""
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
            notice = f"{given} is the folder of a run; its model is in {found}"
            out.notices += [notice] if notice not in out.notices else []


def _renamed(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    for key in [key for key, value in args.items() if value == "None"]:
        args[key] = None
        out.notices.append(f"trainer.args.{key}=None is read as null")
    for old, new in RENAMED.items():
        if old not in args:
            continue
        value = args.pop(old)
        if f"trainer.args.{new}" in typed:
            out.notices.append(
                f"trainer.args.{old} is left out: {new}, its name in transformers 5, is given as well"
            )
        else:
            args[new] = value
            out.notices.append(f"trainer.args.{old} is called {new} in transformers 5")
    for old in [key for key in args if key in DROPPED]:
        args.pop(old)
        out.notices.append(f"trainer.args.{old} is left out: transformers 5 dropped it; {DROPPED[old]}")


def _warmup(args: dict[str, Any], typed: set[str], out: Translation) -> None:
    """`warmup_ratio` is a `warmup_steps` below 1 in transformers 5; either takes the place of the recipe's `warmup_epochs`."""
    ratio = args.pop("warmup_ratio", None)
    if ratio is not None:
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if not number or not 0 <= ratio < 1:
            out.faults.append(
                Fault(
                    f"trainer.args.warmup_ratio={ratio}: a share of the run, at least 0 and below 1",
                    "for example 0.1",
                )
            )
            return
        if "trainer.args.warmup_steps" in typed:
            out.notices.append("trainer.args.warmup_ratio is left out: warmup_steps is given as well")
        else:
            args["warmup_steps"] = float(ratio)
            out.notices.append(
                f"trainer.args.warmup_ratio is called warmup_steps={ratio} in transformers 5 (below 1: a share of the run)"
            )
    if "warmup_steps" in args and "warmup_epochs" in args:
        if "trainer.args.warmup_epochs" in typed:
            out.faults.append(
                Fault(
                    "trainer.args.warmup_epochs and warmup_steps (or warmup_ratio) are both given",
                    "give one of them",
                )
            )
        else:
            args.pop("warmup_epochs")
            out.notices.append(
                "the recipe's warmup_epochs is left out: warmup_steps (or warmup_ratio) is given"
            )


def _packages(args: dict[str, Any], typed: set[str], out: Translation, has: Callable[[str], bool]) -> None:
    """A logger that is not installed is a fault where the user asked for it, and left out where a YAML did."""
    optim = args.get("optim")
    if optim in BITSANDBYTES and not has("bitsandbytes"):
        args["optim"] = BITSANDBYTES[optim]
        out.notices.append(
            f'trainer.args.optim={optim} needs bitsandbytes (pip install "expunge[quantized]"); taken as {args["optim"]}'
        )
    wanted = args.get("report_to")
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    absent = [name for name in names if name in LOGGERS and not has(LOGGERS[name])]
    if absent and "trainer.args.report_to" in typed:
        out.faults += [missing_logger(name, f"trainer.args.report_to={name}") for name in absent]
    elif absent:
        kept = [name for name in names if name not in absent]
        args["report_to"] = kept or "none"
        out.notices.append(
            f"trainer.args.report_to: {', '.join(absent)} is not installed; the run logs to the console and to its file"
        )


def missing_logger(name: str, told: str) -> Fault:
    """The fault of a logger whose package is not installed.

    Args:
        name: one of `LOGGERS`.
        told: how it was asked for.
    """
    line = (
        f'pip install "expunge[{name}]"'
        if name in EXTRAS
        else f"pip install {LOGGERS[name].replace('_', '-')}"
    )
    return Fault(f"{told} needs the package {LOGGERS[name]!r}, which is not installed", line)


def _retain_term(trainer: dict[str, Any], typed: set[str], roots: Sequence[Path], out: Translation) -> None:
    """`method_args.retain_loss_type=KL`, the field's key, is the choice `retain=kl`."""
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
        out.faults.append(
            Fault(
                f"trainer.method_args.retain_loss_type={name} and retain={chosen.get('handler')} differ",
                "give one of the two",
            )
        )
        return
    method_args["retain"] = {**term["retain"], **(chosen or {})}
    out.notices.append(f"trainer.method_args.retain_loss_type={name} is called retain={choice}")


def _handlers(tree: dict[str, Any], trainer: dict[str, Any], roots: Sequence[Path], out: Translation) -> None:
    """Bare class names, as open-unlearning's files have them, become the `module:function` of the same name."""
    name = trainer.get("handler")
    if isinstance(name, str) and ":" not in name:
        aliases = {"FinetuneTrainer": "finetune"}
        path = choices(roots, "trainer").get(aliases.get(name, name))
        handler = OmegaConf.to_container(OmegaConf.load(path)).get("handler") if path else None  # type: ignore[union-attr]
        if isinstance(handler, str) and ":" in handler:
            trainer["handler"] = handler
            out.notices.append(f"trainer.handler={name} is called {handler}")
    for side, sets in _at(tree, "data").items():
        for dataset, node in sets.items() if isinstance(sets, dict) else ():
            if isinstance(node, dict) and node.get("handler") in DATASETS:
                out.notices.append(
                    f"data.{side}.{dataset}.handler={node['handler']} is called {DATASETS[node['handler']]}"
                )
                node["handler"] = DATASETS[node["handler"]]
