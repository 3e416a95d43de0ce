"""The model before unlearning, for an objective that reads it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

import torch

from expunge.core.config import Config
from expunge.core.run_dir import RunDir
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.lm import runtime
from expunge.methods.objective import Objective
from expunge.models.adapter_reference import reference_for
from expunge.models.load import Loaded
from expunge.models.reference import CachedReference, Reference

log = logging.getLogger(__name__)


def reference_of(
    cfg: Config, loaded: Loaded, objective: Objective, sides: Mapping[str, Dataset], run: RunDir, pad_id: int
) -> Reference | None:
    """The reference, as cheaply as objective and adapters allow (`reference: auto`) or as asked; None where nothing reads it."""
    dtype = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype
    cached = partial(_cached, loaded, objective, sides, run, pad_id, dtype)
    asked = str(cfg.get("reference") or "auto")
    found = reference_for(
        loaded.model,
        objective.needs,
        cached=cached,
        asked=asked,
        autocast_dtype=dtype,
        hidden=objective.hidden,
    )
    if found is not None:
        log.info("the model before unlearning is read through: %s", type(found).__name__)
    return found


def _cached(
    loaded: Loaded,
    objective: Objective,
    sides: Mapping[str, Dataset],
    run: RunDir,
    pad_id: int,
    dtype: torch.dtype | None,
) -> CachedReference:
    """Per-token log-probs of every row that may be asked for."""
    wanted = {need.side for need in objective.reference_needs}
    views: dict[str, list[Encoded]] = {side: data.encoded for side, data in sides.items() if side in wanted}
    if "alternate" in wanted:
        views["alternate"] = sides["forget"].alternates or []
    loaded.model.to(runtime.device())  # type: ignore[arg-type]  # transformers' decorated `to` hides its signature
    log.info(
        "caching the reference's log-probs of %d rows in %s",
        sum(map(len, views.values())),
        run.path / "reference",
    )
    return CachedReference.compute(
        loaded.model, views, run.path / "reference", pad_id=pad_id, autocast_dtype=dtype
    )
