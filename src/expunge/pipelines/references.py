"""The model before unlearning, for an objective that reads it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from expunge.core.config import Config
from expunge.core.run_dir import RunDir
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.methods.objective import Objective
from expunge.models.adapter_reference import reference_for
from expunge.models.load import Loaded
from expunge.models.parallel import Parallel
from expunge.models.reference import CachedReference, Reference

log = logging.getLogger(__name__)


def reference_of(
    cfg: Config,
    loaded: Loaded,
    objective: Objective,
    sides: Mapping[str, Dataset],
    run: RunDir,
    pad_id: int,
    parallel: Parallel,
) -> Reference | None:
    """The cheapest exact reference (`reference: auto`), or the requested kind; None if not needed."""
    dtype = None if loaded.compute_dtype is torch.float32 else loaded.compute_dtype
    model = loaded.model

    def cached() -> CachedReference:
        """Log-probs per token of every row that the objective may read."""
        wanted, folder = {need.side for need in objective.reference_needs}, run.path / "reference"
        views: dict[str, list[Encoded]] = {
            side: data.encoded for side, data in sides.items() if side in wanted
        }
        if "alternate" in wanted:
            views["alternate"] = sides["forget"].alternates or []
        if not parallel.sharded:
            model.to(parallel.device)  # type: ignore[arg-type]  # transformers' decorated `to`
        log.info("caching the reference's log-probs of %d rows in %s", sum(map(len, views.values())), folder)
        return CachedReference.compute(
            model, views, folder, pad_id=pad_id, autocast_dtype=dtype, parallel=parallel
        )

    asked, hidden = str(cfg.get("reference") or "auto"), objective.hidden
    found = reference_for(
        model,
        objective.needs,
        cached=cached,
        asked=asked,
        autocast_dtype=dtype,
        hidden=hidden,
        parallel=parallel,
    )
    if found is not None:
        log.info("reference (the model before unlearning): %s", type(found).__name__)
    return found
