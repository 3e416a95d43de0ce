"""Optimizer, rules and mask of a run, built from the config groups `optimizer` and `mask`."""

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
"""Most padded tokens in a batch when the mask is computed."""


def stepping_of(
    cfg: Config,
    run: RunDir,
    model: nn.Module,
    sides: Mapping[str, Dataset],
    args: TrainingArguments,
    pad_id: int,
) -> dict[str, Any]:
    """The arguments `optimizer_factory`, `rules_factory` and `mask` of a training.

    Args:
        cfg: the run's configuration; reads `trainer.optimizer` and `trainer.mask`.
        run: its folder, which keeps the mask.
        model: the start model, before a checkpoint is loaded.
        sides: the rows by side.
        args: arguments of the training.
        pad_id: token to pad with.

    Raises:
        UserError: the choices do not work together, or not with this model.
    """
    given, path = cfg.get(f"{MASK}.path"), run.path / MASK_FILE
    found: dict[str, Any] = {
        "optimizer_factory": optimizer_factory(cfg.bound),
        "rules_factory": partial(build_rules, rules_of(cfg.bound)),
        "mask": None,
    }
    if MASK not in cfg.bound and given is None:
        return found
    model.to(args.device)
    fingerprint = model_fingerprint(model)

    def make() -> None:
        """Made once, because scores of weights may differ from run to run."""
        if path.is_file():
            return
        if given is not None:
            WeightMask.load(Path(str(given)).expanduser(), model, fingerprint).save(path)
            return
        size, seed = args.per_device_train_batch_size, int(cfg.get("seed", 0))
        rows = {side: _Batches(data.encoded, pad_id, size, args.device) for side, data in sides.items()}
        forget, retain = rows.get("forget"), rows.get("retain")
        mask_of(
            cfg.bound[MASK], model, forget=forget, retain=retain, seed=seed, fingerprint=fingerprint
        ).save(path)

    runtime.from_rank_0(make)
    mask = found["mask"] = WeightMask.load(path, model, fingerprint)
    share = 100 * mask.num_allowed / max(1, mask.num_weights)
    log.info(
        "mask %s: %d of %d weights may be updated (%.2f %%)", path, mask.num_allowed, mask.num_weights, share
    )
    return found


@dataclass(frozen=True)
class _Batches:
    """Rows in padded batches on a device; each iteration builds them again."""

    encoded: Sequence[Encoded]
    pad_id: int
    max_rows: int
    where: torch.device

    def __iter__(self) -> Iterator[Side]:
        for batch in token_budgeted_batches(
            [len(item.input_ids) for item in self.encoded], MAX_TOKENS, self.max_rows
        ):
            yield on_device(collate([self.encoded[number] for number in batch], self.pad_id), self.where)
