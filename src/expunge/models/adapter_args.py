"""What `model.adapter` may say, and what it means where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expunge.config.adapter import KEY, bind_adapter
from expunge.core.binding import bound_alone
from expunge.core.ranges import Count, Decay, Positive

# The field's values for finetuning on TOFU and WMDP (SOUL's finetuning scripts).
DEFAULT_R, DEFAULT_ALPHA, DEFAULT_DROPOUT = 8, 16, 0.05


@dataclass(frozen=True)
class AdapterArgs:
    """The section `model.adapter`. None = not asked: the default for a new adapter, its own value for one that is continued.

    Attributes:
        type: none, lora, or qlora (the base in 4 bits).
        path: folder of a trained adapter to go on with.
        r: rank; 8 for a new adapter.
        alpha: the update is multiplied by alpha / r; 16 for a new adapter.
        dropout: before the adapter, in training; 0.05 for a new adapter.
        target_modules: the last parts of the names of the layers to adapt, or a regular expression of whole
            names; all linear layers but the output embeddings for a new adapter.
        bias: which biases of the base are trained too.
        merge: save the whole model with the adapter merged in.
        allow_other_base: go on with an adapter whose record names another base.
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
            section: by the names of the attributes; None and an empty one mean no adapter.

        Raises:
            UserError: unknown keys and values that cannot be, all together.
        """
        values = dict(bound_alone(bind_adapter, section or {})[KEY].kwargs)
        targets = values.get("target_modules")
        if targets is not None and not isinstance(targets, str):
            values["target_modules"] = tuple(targets)
        elif targets == "all-linear":
            del values["target_modules"]
        return cls(**values)
