"""The keys of `model.adapter` and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expunge.config.adapter import KEY, bind_adapter
from expunge.core.binding import bound_alone
from expunge.core.ranges import Count, Decay, Positive

# Usual values for finetuning on TOFU and WMDP (from SOUL's finetuning scripts).
DEFAULT_R, DEFAULT_ALPHA, DEFAULT_DROPOUT = 8, 16, 0.05


@dataclass(frozen=True)
class AdapterArgs:
    """The section `model.adapter`.

    None = not given: a new adapter uses the default, a continued adapter keeps its own value.

    Attributes:
        type: none, lora, or qlora (base in 4 bits).
        path: folder of a trained adapter to continue.
        r: rank; default 8.
        alpha: the update is multiplied by alpha / r; default 16.
        dropout: dropout before the adapter, in training; default 0.05.
        target_modules: names of the layers to adapt (their last parts), or a regular expression for whole
            names; default: all linear layers except the output embeddings.
        bias: which biases of the base are trained too.
        merge: save the whole model with the adapter merged into it.
        allow_other_base: continue an adapter even if its record names another base.
    """

    type: Literal["none", "lora", "qlora"] = "none"
    path: str | None = None
    r: Count | None = None
    alpha: Positive | None = None
    dropout: Decay | None = None
    target_modules: tuple[str, ...] | str | None = None
    bias: Literal["none", "all", "lora_only"] | None = None
    merge: bool = False
    allow_other_base: bool = False

    @classmethod
    def parse(cls, section: Mapping[str, Any] | None) -> AdapterArgs:
        """Read and check the section.

        Args:
            section: the attributes by name; None or empty = no adapter.

        Raises:
            UserError: all unknown keys and invalid values together.
        """
        values = dict(bound_alone(bind_adapter, section or {})[KEY].kwargs)
        targets = values.get("target_modules")
        if targets is not None and not isinstance(targets, str):
            values["target_modules"] = tuple(targets)
        elif targets == "all-linear":
            del values["target_modules"]
        return cls(**values)
