"""The flags of the SOUL family's scripts by dotted name; the last part of a name (`--lr`) works too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.soul.methods import METHODS

ValueKind = Literal["text", "whole", "number", "switch"]

LOGGERS = ("json", "tensorboard", "wandb", "trackio", "none")
TASKS = ("tofu", "wmdp", "hp", "copyright", "toxic")


@dataclass(frozen=True)
class Flag:
    """One flag: dotted as in the nested configuration files (without a dot in the finetuning scripts).

    `choices` are the valid values (empty = any), `also` are further spellings.
    """

    name: str
    kind: ValueKind
    help: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


_ROOT = "folder of the runs (default: files/logs)"
UNLEARN = (
    Flag("overall.model_name", "text", "a model on the hub, or a local model folder; required"),
    Flag("overall.cache_dir", "text", "folder for files from the hub"),
    Flag("overall.seed", "whole", "seed of the run (default: 0)"),
    Flag("overall.logger", "text", "a logger beside log.json (default: none)", LOGGERS),
    Flag("overall.save_dir", "text", "the run's folder, instead of ROOT/NAME"),
    Flag("unlearn.unlearn_method", "text", "the method (default: origin)", tuple(METHODS)),
    Flag(
        "unlearn.task_name",
        "text",
        "the evaluation after training (default: toxic); hp is the same as copyright",
        TASKS,
    ),
    Flag("unlearn.num_epochs", "number", "epochs over the forget rows (default: 1)"),
    Flag("unlearn.max_steps", "whole", "optimizer steps, instead of epochs"),
    Flag("unlearn.lr", "number", "learning rate (default: 1e-4)"),
    Flag("unlearn.weight_decay", "number", "weight decay (default: 0.1)"),
    Flag("unlearn.gradient_accumulation_steps", "whole", "micro-batches per optimizer step (default: 1)"),
    Flag("unlearn.sophia", "switch", "use the optimizer Sophia"),
    Flag("unlearn.sophia_params.betas_low", "number", "Sophia's first beta (default: 0.9)"),
    Flag("unlearn.sophia_params.betas_high", "number", "Sophia's second beta (default: 0.95)"),
    Flag("unlearn.sophia_params.rho", "number", "Sophia's rho (default: 0.03)"),
    Flag(
        "unlearn.use_lora",
        "switch",
        "train a LoRA adapter; an adapter in the model folder is trained further",
    ),
    Flag("unlearn.mask_path", "text", "a mask file: the weights that may be updated"),
    Flag("unlearn.resume_path", "text", "a model or a run folder to evaluate; nothing is trained"),
    Flag("unlearn.compute_difficulty_only", "switch", "score the forget rows and stop"),
    Flag("unlearn.difficulty_score_path", "text", "the file of scores"),
    Flag(
        "unlearn.enable_difficulty_sampling",
        "switch",
        "train on the forget rows in the order of their scores",
    ),
    Flag(
        "unlearn.difficulty_order",
        "text",
        "lowest or highest score first (default: asc)",
        ("asc", "desc"),
    ),
    Flag("unlearn.gamma", "number", "gamma of the chosen method"),
    Flag("unlearn.alpha", "number", "alpha of the chosen method"),
    Flag("unlearn.beta", "number", "beta of the chosen method"),
    *(
        Flag(
            f"unlearn.{name}.{key}",
            "number",
            f"{key} of {name}" + (", required" if key == method.required else ""),
        )
        for name, method in METHODS.items()
        for key in method.keys
    ),
    Flag("dataset.forget_dataset_name", "text", "what to forget: a name or a local file (default: SafePku)"),
    Flag("dataset.retain_dataset_name", "text", "what to keep: a name, a local file or none (default: C4)"),
    Flag("dataset.dataset_seed", "whole", "seed of the selection of forget rows (default: 0)"),
    Flag(
        "dataset.forget_ratio",
        "number",
        "above 1: number of forget rows; at most 1: share of the rows (default: 200)",
    ),
    Flag("dataset.self_retain", "switch", "keep the rows of the forget dataset that are not forgotten"),
    Flag("dataset.batch_size", "whole", "rows per micro-batch and device (default: 16)"),
    Flag("dataset.custom_split_path", "text", "WMDP's corpora as a folder of datasets.save_to_disk"),
    Flag("logger.name", "text", "name of the run", also=("run_name",)),
    Flag("logger.root", "text", _ROOT, also=("log_root",)),
    *(Flag(f"logger.{name}.root", "text", _ROOT) for name in LOGGERS),
)

_TRAINING = (
    Flag("model_name", "text", "a model on the hub, or a local model folder; required"),
    Flag("cache_dir", "text", "folder for files from the hub"),
    Flag("seed", "whole", "seed of the run (default: 0)"),
    Flag("epochs", "number", "epochs (default: 3)"),
    Flag("batch_size", "whole", "rows per micro-batch and device (default: 2)"),
    Flag("gradient_accumulation_steps", "whole", "micro-batches per optimizer step (default: 8)"),
    Flag("lr", "number", "learning rate (default: 1e-4)"),
    Flag("weight_decay", "number", "weight decay (default: 0.01)"),
    Flag("num_warmup_steps", "whole", "number of warm-up steps (default: 0)"),
    Flag("max_steps", "whole", "optimizer steps, instead of epochs"),
    Flag("lora_r", "whole", "rank of the LoRA adapter (default: 8); 0 = all weights are trained"),
    Flag("lora_alpha", "number", "alpha of the LoRA adapter (default: 16)"),
    Flag("lora_dropout", "number", "dropout of the LoRA adapter (default: 0.05)"),
    Flag("save_dir", "text", "the run's folder; required"),
    Flag("ddp_find_unused_parameters", "switch", "find_unused_parameters of DistributedDataParallel"),
)
FINETUNE = {
    "tofu": (*_TRAINING, Flag("subset", "text", "TOFU's subset (default: full)")),
    "hp": _TRAINING,
    "wmdp": (
        *_TRAINING,
        Flag("domain", "text", "the domain of the corpora (default: cyber)", ("cyber", "bio", "chem", "all")),
        Flag(
            "subset",
            "text",
            "the corpora to forget or those to retain (default: both)",
            ("forget", "retain"),
        ),
        Flag("custom_split_path", "text", "the corpora as a folder of datasets.save_to_disk"),
    ),
}


def spellings(flags: tuple[Flag, ...]) -> dict[str, Flag]:
    """Every spelling of every flag, without dashes. The last part of a dotted name is a spelling too."""
    names = {flag.name: flag for flag in flags}
    for flag in flags:
        names.update(dict.fromkeys(flag.also, flag))
    shortest = sorted(flags, key=lambda flag: flag.name.count("."))
    for flag in shortest:
        # If several flags have the same last part, it means the flag with the fewest dots: --gamma is
        # unlearn.gamma, not unlearn.KL.gamma.
        names.setdefault(flag.name.rpartition(".")[2], flag)
    return names
