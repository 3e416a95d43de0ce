"""How a run takes its steps: from the groups `optimizer` and `mask` to what the trainer is given."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from expunge.config.stepping import MASK
from expunge.core.config import Config
from expunge.core.run_dir import RunDir
from expunge.data.collate import collate
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.lm import runtime
from expunge.lm.labels import Side, on_device
from expunge.lm.packing import token_budgeted_batches
from expunge.models.fingerprint import model_fingerprint
from expunge.optim.build import build_rules, mask_of, optimizer_factory, rules_of
from expunge.optim.masks import WeightMask

log = logging.getLogger(__name__)

MASK_FILE = "mask.safetensors"
MAX_TOKENS = 4096
"""Padded tokens of a batch that weights are scored by."""


def stepping_of(
    cfg: Config,
    run: RunDir,
    model: nn.Module,
    sides: Mapping[str, Dataset],
    args: TrainingArguments,
    pad_id: int,
) -> dict[str, Any]:
    """The trainer's arguments `optimizer_factory`, `rules_factory` and `mask`.

    Args:
        cfg: the run's configuration; reads `trainer.optimizer` and `trainer.mask`.
        run: its folder, which keeps the mask.
        model: as it is before training, and before a checkpoint is loaded.
        sides: the rows by side.
        args: of the training.
        pad_id: token to pad with.

    Raises:
        UserError: what was chosen cannot be had together, or for this model.
    """
    factory, masked = optimizer_factory(cfg.bound), MASK in cfg.bound or cfg.get(f"{MASK}.path") is not None
    return {
        "optimizer_factory": factory,
        "rules_factory": partial(build_rules, rules_of(cfg.bound)),
        "mask": _mask(cfg, run, model, sides, args, pad_id) if masked else None,
    }


def _mask(
    cfg: Config,
    run: RunDir,
    model: nn.Module,
    sides: Mapping[str, Dataset],
    args: TrainingArguments,
    pad_id: int,
) -> WeightMask:
    """The mask of the run: made once, on one rank, and read by all of them and by whoever resumes; scores may differ from run to run."""
    where = args.device
    model.to(where)
    path, fingerprint = run.path / MASK_FILE, model_fingerprint(model)
    rows = {
        side: _Batches(data.encoded, pad_id, args.per_device_train_batch_size, where)
        for side, data in sides.items()
    }

    def make() -> None:
        if path.is_file():
            return
        if (given := cfg.get(f"{MASK}.path")) is not None:
            WeightMask.load(Path(str(given)).expanduser(), model, fingerprint).save(path)
            return
        made = mask_of(
            cfg.bound[MASK],
            model,
            forget=rows.get("forget"),
            retain=rows.get("retain"),
            seed=int(cfg.get("seed", 0)),
            fingerprint=fingerprint,
        )
        made.save(path)

    runtime.from_rank_0(make)
    mask = WeightMask.load(path, model, fingerprint)
    share = 100 * mask.num_allowed / max(1, mask.num_weights)
    log.info(
        "mask %s: %d of %d weights may be updated (%.2f %%)", path, mask.num_allowed, mask.num_weights, share
    )
    return mask


@dataclass(frozen=True)
class _Batches:
    """Rows in padded batches on a device, made anew each time they are gone through."""

    encoded: Sequence[Encoded]
    pad_id: int
    max_rows: int
    where: torch.device

    def __iter__(self) -> Iterator[Side]:
        for batch in token_budgeted_batches(
            [len(item.input_ids) for item in self.encoded], MAX_TOKENS, self.max_rows
        ):
            yield on_device(collate([self.encoded[number] for number in batch], self.pad_id), self.where)
