"""The flags of the SOUL family's scripts, by dotted name; the last part alone (`--lr`) works too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.soul.methods import METHODS

ValueKind = Literal["text", "whole", "number", "switch"]

LOGGERS = ("json", "tensorboard", "wandb", "trackio", "none")
TASKS = ("tofu", "wmdp", "hp", "copyright", "toxic")


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: dotted, as the configuration files nest it; without a dot in the finetuning scripts.
        kind: what its value is.
        help: what it is for.
        choices: the values it may have; empty = any.
        also: further spellings.
    """

    name: str
    kind: ValueKind
    help: str
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def _overall() -> list[Flag]:
    return [
        Flag("overall.model_name", "text", "a model of the hub or the folder of one; required"),
        Flag("overall.cache_dir", "text", "where files of the hub are kept"),
        Flag("overall.seed", "whole", "seed of the run (default: 0)"),
        Flag("overall.logger", "text", "where the log goes beside log.json (default: none)", LOGGERS),
        Flag("overall.save_dir", "text", "the run's folder, instead of ROOT/NAME"),
    ]


def _unlearn() -> list[Flag]:
    return [
        Flag("unlearn.unlearn_method", "text", "the method (default: origin)", tuple(METHODS)),
        Flag(
            "unlearn.task_name",
            "text",
            "what is evaluated afterwards (default: toxic); hp is copyright",
            TASKS,
        ),
        Flag("unlearn.num_epochs", "number", "epochs over the forget rows (default: 1)"),
        Flag("unlearn.max_steps", "whole", "optimizer steps, instead of epochs"),
        Flag("unlearn.lr", "number", "learning rate (default: 1e-4)"),
        Flag("unlearn.weight_decay", "number", "weight decay (default: 0.1)"),
        Flag(
            "unlearn.gradient_accumulation_steps", "whole", "micro-batches of an optimizer step (default: 1)"
        ),
        Flag("unlearn.sophia", "switch", "take the steps with Sophia"),
        Flag("unlearn.sophia_params.betas_low", "number", "Sophia's first beta (default: 0.9)"),
        Flag("unlearn.sophia_params.betas_high", "number", "Sophia's second beta (default: 0.95)"),
        Flag("unlearn.sophia_params.rho", "number", "Sophia's rho (default: 0.03)"),
        Flag(
            "unlearn.use_lora",
            "switch",
            "train a LoRA adapter; one that the model folder holds is trained further",
        ),
        Flag("unlearn.mask_path", "text", "a file of the weights that may be updated"),
        Flag(
            "unlearn.resume_path", "text", "a model, or the folder of a run, to evaluate; nothing is trained"
        ),
    ]


def _difficulty() -> list[Flag]:
    return [
        Flag("unlearn.compute_difficulty_only", "switch", "score the forget rows and stop"),
        Flag("unlearn.difficulty_score_path", "text", "the file of scores"),
        Flag(
            "unlearn.enable_difficulty_sampling",
            "switch",
            "go through the forget rows in the order of their scores",
        ),
        Flag(
            "unlearn.difficulty_order",
            "text",
            "lowest or highest score first (default: asc)",
            ("asc", "desc"),
        ),
    ]


def _hyper_parameters() -> list[Flag]:
    return [
        Flag("unlearn.gamma", "number", "gamma of the method, whichever it is"),
        Flag("unlearn.alpha", "number", "alpha of the method, whichever it is"),
        Flag("unlearn.beta", "number", "beta of the method, whichever it is"),
        *(
            Flag(
                f"unlearn.{name}.{key}",
                "number",
                f"{key} of {name}" + (", required" if key == method.required else ""),
            )
            for name, method in METHODS.items()
            for key in method.keys
        ),
    ]


def _dataset() -> list[Flag]:
    return [
        Flag(
            "dataset.forget_dataset_name", "text", "what to forget, a name or a local file (default: SafePku)"
        ),
        Flag(
            "dataset.retain_dataset_name", "text", "what to keep, a name, a local file or none (default: C4)"
        ),
        Flag("dataset.dataset_seed", "whole", "seed of the choice of forget rows (default: 0)"),
        Flag(
            "dataset.forget_ratio",
            "number",
            "above 1 a count of forget rows, at most 1 a share (default: 200)",
        ),
        Flag("dataset.self_retain", "switch", "keep the rows of the forget data set that are not forgotten"),
        Flag("dataset.batch_size", "whole", "rows of a micro-batch on a device (default: 16)"),
        Flag(
            "dataset.custom_split_path", "text", "WMDP's corpora as a folder that datasets.save_to_disk wrote"
        ),
    ]


def _logger() -> list[Flag]:
    roots = [
        Flag(f"logger.{name}.root", "text", "folder of the runs (default: files/logs)") for name in LOGGERS
    ]
    return [
        Flag("logger.name", "text", "name of the run", also=("run_name",)),
        Flag("logger.root", "text", roots[0].help, (), ("log_root",)),
        *roots,
    ]


UNLEARN = (
    *_overall(),
    *_unlearn(),
    *_difficulty(),
    *_hyper_parameters(),
    *_dataset(),
    *_logger(),
)

_TRAINING = (
    Flag("model_name", "text", "a model of the hub or the folder of one; required"),
    Flag("cache_dir", "text", "where files of the hub are kept"),
    Flag("seed", "whole", "seed of the run (default: 0)"),
    Flag("epochs", "number", "epochs (default: 3)"),
    Flag("batch_size", "whole", "rows of a micro-batch on a device (default: 2)"),
    Flag("gradient_accumulation_steps", "whole", "micro-batches of an optimizer step (default: 8)"),
    Flag("lr", "number", "learning rate (default: 1e-4)"),
    Flag("weight_decay", "number", "weight decay (default: 0.01)"),
    Flag("num_warmup_steps", "whole", "steps of warm-up (default: 0)"),
    Flag("max_steps", "whole", "optimizer steps, instead of epochs"),
    Flag("lora_r", "whole", "rank of the LoRA adapter (default: 8); 0 = all weights are trained"),
    Flag("lora_alpha", "number", "its alpha (default: 16)"),
    Flag("lora_dropout", "number", "its dropout (default: 0.05)"),
    Flag("save_dir", "text", "the run's folder; required"),
    Flag("ddp_find_unused_parameters", "switch", "as torch's DistributedDataParallel has it"),
)
FINETUNE = {
    "tofu": (*_TRAINING, Flag("subset", "text", "TOFU's subset (default: full)")),
    "hp": _TRAINING,
    "wmdp": (
        *_TRAINING,
        Flag("domain", "text", "which corpora (default: cyber)", ("cyber", "bio", "chem", "all")),
        Flag(
            "subset",
            "text",
            "the corpora to forget, those to retain, or both (default)",
            ("forget", "retain"),
        ),
        Flag("custom_split_path", "text", "the corpora as a folder that datasets.save_to_disk wrote"),
    ),
}


def spellings(flags: tuple[Flag, ...]) -> dict[str, Flag]:
    """Every spelling of every flag, without dashes. The last part of a dotted name is one if it is unique."""
    names = {flag.name: flag for flag in flags}
    for flag in flags:
        names.update(dict.fromkeys(flag.also, flag))
    shortest = sorted(flags, key=lambda flag: flag.name.count("."))
    for flag in shortest:
        # Of flags with the same last part the one with fewest dots has it: --gamma is unlearn.gamma, not
        # unlearn.KL.gamma.
        names.setdefault(flag.name.rpartition(".")[2], flag)
    return names
