"""What `model.adapter` may say, and what it means where it says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from expunge.config.model_keys import ADAPTER_KEYS
from expunge.core.errors import Fault, UserError, unknown

TYPES = ("none", "lora", "qlora")
BIASES = ("none", "all", "lora_only")
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

    type: str = "none"
    path: str | None = None
    r: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    target_modules: tuple[str, ...] | str | None = None
    bias: str | None = None
    merge: bool = False
    allow_other_base: bool = False

    @classmethod
    def parse(cls, section: Mapping[str, Any] | None) -> AdapterArgs:
        """Read and check the section.

        Args:
            section: keys of `ADAPTER_KEYS`; None and an empty one mean no adapter.

        Raises:
            UserError: unknown keys and values that cannot be, all together.
        """
        given = {key: value for key, value in (section or {}).items() if value is not None}
        faults = [
            unknown("key of model.adapter", key, ADAPTER_KEYS) for key in given if key not in ADAPTER_KEYS
        ]
        faults += _value_faults(given)
        if faults:
            raise UserError.of(faults)
        values = {key: given[key] for key in (field.name for field in fields(cls)) if key in given}
        targets = values.get("target_modules")
        if targets is not None and not isinstance(targets, str):
            values["target_modules"] = tuple(targets)
        elif targets == "all-linear":
            del values["target_modules"]
        return cls(**values)


def _value_faults(given: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    for key, choices in (("type", TYPES), ("bias", BIASES)):
        if key in given and given[key] not in choices:
            faults.append(unknown(f"model.adapter.{key}", str(given[key]), choices))
    r = given.get("r", 1)
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        faults.append(Fault(f"model.adapter.r is {r!r}", "give a whole number of 1 or more, such as 8"))
    if not _is_number(given.get("alpha", 1)) or not given.get("alpha", 1) > 0:
        faults.append(
            Fault(f"model.adapter.alpha is {given['alpha']!r}", "give a number above 0, such as 16")
        )
    if not _is_number(given.get("dropout", 0)) or not 0 <= given.get("dropout", 0) < 1:
        faults.append(
            Fault(
                f"model.adapter.dropout is {given['dropout']!r}",
                "give a probability of at least 0 and below 1",
            )
        )
    targets = given.get("target_modules", "all-linear")
    listed = (
        isinstance(targets, (list, tuple))
        and bool(targets)
        and all(isinstance(name, str) and name for name in targets)
    )
    if not listed and not (isinstance(targets, str) and targets):
        faults.append(
            Fault(
                f"model.adapter.target_modules is {targets!r}",
                "give names such as [q_proj,v_proj], or a regular expression",
            )
        )
    for key in ("merge", "allow_other_base"):
        if not isinstance(given.get(key, False), bool):
            faults.append(Fault(f"model.adapter.{key} is {given[key]!r}", "give true or false"))
    path = given.get("path")
    if path is not None and not (Path(str(path)).expanduser() / "adapter_config.json").is_file():
        looked = Path(str(path)).expanduser().absolute()
        faults.append(
            Fault(
                f"model.adapter.path: {path} is not the folder of an adapter",
                f"looked for adapter_config.json in {looked}",
            )
        )
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
