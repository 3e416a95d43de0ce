"""Checks of `trainer.args.optim`: the packages and the further arguments that an optimizer needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.config.aliases import installed
from expunge.core.binding import Binder

QUANTIZED = ("bitsandbytes", 'pip install "expunge[quantized]"')
PACKAGES = {
    "galore_": ("galore_torch", "pip install galore-torch"),
    "apollo_": ("apollo_torch", "pip install apollo-torch"),
    "schedule_free_": ("schedulefree", "pip install schedulefree"),
    "grokadamw": ("grokadamw", "pip install grokadamw"),
    "stable_adamw": ("optimi", "pip install torch-optimi"),
    "adamw_torch_4bit": ("torchao", "pip install torchao"),
    "adamw_torch_8bit": ("torchao", "pip install torchao"),
    "adamw_anyprecision": ("torchdistx", "see https://github.com/pytorch/torchdistx"),
    "ademamix": QUANTIZED,
    "lion_": QUANTIZED,
    "paged_": QUANTIZED,
}
"""The package of an optimizer, by the beginning of its name, and how to install it."""
ALONE = ("lomo", "adalomo")
"""Optimizers that update the model while they compute gradients; so do all `*_layerwise`."""


def check_optimizer(binder: Binder, key: str, args: Mapping[str, Any]) -> None:
    """Check what `optim` needs, and the form of `optim_args`."""
    name, further = args.get("optim"), args.get("optim_args")
    if isinstance(further, str) and any(item.count("=") != 1 for item in further.split(",") if further):
        text = binder.typed(f"{key}.optim_args", further)
        binder.fault(
            f"{text}: must be a list of name=value with commas", "for example 'momentum=0.9,nesterov=true'"
        )
    if not isinstance(name, str):
        return
    text = binder.typed(f"{key}.optim", name)
    if name in ALONE or name.endswith("_layerwise"):
        binder.fault(
            f"{text}: {name} updates the model in its own loop, without clipping and accumulation",
            "choose another one, or one of the config group `optimizer`",
        )
        return
    needed = next((found for start, found in PACKAGES.items() if name.startswith(start)), None)
    if needed is not None and not installed(needed[0]):
        binder.fault(f"{text} needs the package {needed[0]!r}, which is not installed", needed[1])
    if name.startswith(("galore_", "apollo_")) and args.get("optim_target_modules") is None:
        binder.fault(
            f"{text} needs optim_target_modules", f"for example {key}.optim_target_modules=all-linear"
        )
