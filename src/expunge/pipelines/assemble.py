"""What several verbs build from a configuration: tokenizer, template, data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from expunge.core.config import Config
from expunge.core.errors import Faults, UserError
from expunge.data.datasets import Dataset, build_dataset, concatenate
from expunge.data.template import Template
from expunge.models.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """How text becomes tokens in a run. The tokenizer's pad token needs no new embedding."""

    tokenizer: PreTrainedTokenizerBase
    template: Template

    @property
    def pad_id(self) -> int:
        """The token that fills short rows; masked everywhere."""
        return int(self.tokenizer.pad_token_id)


def text_of(cfg: Config, notices: list[str]) -> Text:
    """The tokenizer and template of a configuration."""
    tokenizer_args = cfg.section("model.tokenizer_args") or {
        "pretrained_model_name_or_path": cfg.get("model.model_args.pretrained_model_name_or_path")
    }
    tokenizer = load_tokenizer(tokenizer_args, notices=notices)
    return Text(tokenizer, Template.from_args(cfg.section("model.template_args"), tokenizer))


def data_root(cfg: Config) -> Path | None:
    """The folder of local data sets."""
    root = cfg.get("paths.data_root")
    return Path(root) if root else None


def dataset_of(cfg: Config, key: str, text: Text) -> Dataset | None:
    """The data sets under `data.<key>`, concatenated; None if there is none."""
    built: list[Dataset] = []
    faults = Faults()
    for name in cfg.section(f"data.{key}"):
        with faults.noted():
            built.append(
                build_dataset(
                    name,
                    cfg.bound[f"data.{key}.{name}.args"],
                    text.template,
                    data_root(cfg),
                    seed=int(cfg.get("seed", 0)),
                    switches=cfg.switches("encode"),
                )
            )
    faults.raise_found()
    return None if not built else built[0] if len(built) == 1 else concatenate(key, built)


def sides_of(cfg: Config, text: Text, needed: Sequence[str]) -> dict[str, Dataset]:
    """The data set of each side. In finetuning the training rows are the retain side.

    Raises:
        UserError: a side in `needed` has no data.
    """
    if cfg.get("mode") == "finetune":
        train = dataset_of(cfg, "train", text)
        if train is None:
            raise UserError(
                "data.train names no data set", "add one, such as data/datasets@data.train=TOFU_QA_full"
            )
        return {"retain": train}
    faults = Faults()
    found: dict[str, Dataset | None] = {}
    for side in ("forget", "retain"):
        with faults.noted():
            found[side] = dataset_of(cfg, side, text)
    faults.raise_found()
    for side in ("forget" if side == "alternate" else side for side in needed):
        if found.get(side) is None:
            raise UserError(
                f"the method reads {side} rows, but data.{side} names no data set",
                f"add one under data.{side}",
            )
    return {side: dataset for side, dataset in found.items() if dataset is not None}


def log_notices(notices: Sequence[str], already: Sequence[str] = ()) -> None:
    """Log the notices that were not logged `already`."""
    for notice in notices:
        if notice not in already:
            log.warning("%s", notice)
