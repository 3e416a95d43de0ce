"""WHP, "Who's Harry Potter": finetune on tokens that a model without knowledge of the rows would predict."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from expunge.core.errors import UserError
from expunge.core.files import read_json, write_json
from expunge.data.collate import collate
from expunge.data.datasets import Dataset
from expunge.data.encoded import Encoded
from expunge.lm import runtime
from expunge.lm.labels import on_device
from expunge.lm.packing import token_budgeted_batches
from expunge.models.load import Loaded
from expunge.models.outputs import label_outputs
from expunge.models.parallel import Parallel
from expunge.procedures.base import Stages, procedure

log = logging.getLogger(__name__)

LABELS_FILE = "generic_labels.json"
"""File in the run folder: for each row its id, its label tokens and the generic tokens."""
MAX_TOKENS = 4096
"""Padded tokens of a forward pass."""


@procedure(
    stages={"reinforced": "forget", "final": "forget"},
    at_least_0=("alpha",),
    refused={
        "mode=logits": "mixing logits at inference needs two models, but every evaluation here reads the "
        "output embeddings of one model"
    },
    paper="arXiv:2310.02238, Section 2, Equation 1",
    code="https://github.com/jaechan-repo/muse_bench/blob/e0000386e5318665693db28e27b41711674256ef/baselines/baselines/whos_harry_potter.py",
)
def whp(
    stages: Stages,
    forget: Dataset,
    *,
    alpha: float = 5.0,
    mode: Literal["labels"] = "labels",
    reinforced: Mapping[str, Any] | None = None,
) -> None:
    """WHP: learn argmax of v_baseline - alpha relu(v_reinforced - v_baseline) instead of each forget label.

    1. `reinforced`: the start model is finetuned further on the forget rows, so that its knowledge of them
    grows.
    2. Generic labels: at each label position, logits that grew are lowered; the generic label is then the
    most likely token. The rows themselves are the context.
    3. The start model is finetuned with the unchanged rows as input and the generic labels as targets. Retain
    rows are not read.

    Left out: the paper's dictionary of anchored terms, which replaces names with invented ones before the
    baseline runs (Section 2.2) and is written by another language model; alpha is still that of the paper.
    The mixture of the logits of both models at inference, as in the code of MUSE (alpha 1 there), is not
    supported.

    Args:
        stages: interface of the run.
        forget: the rows to forget.
        alpha: how much logits that grew are lowered, >= 0; 5 in the experiments of the paper. 0 teaches the
            model its own answers.
        mode: "labels", the only supported value.
        reinforced: TrainingArguments of the first stage, which override `trainer.args`; the paper trains this
            stage longer and at a higher learning rate.
    """
    path = stages.folder / LABELS_FILE
    if not runtime.from_rank_0(path.is_file):
        folder = stages.finetuned("reinforced", "forget", args=reinforced)
        baseline, other = stages.load(), stages.load(folder)
        found = generic_labels(baseline, other, forget.encoded, alpha=alpha, pad_id=stages.pad_id)
        del baseline, other
        if runtime.is_primary():
            rows = [
                {"id": item.row_id, "labels": list(item.label_ids), "generic": labels}
                for item, labels in zip(forget.encoded, found, strict=True)
            ]
            write_json(path, {"alpha": alpha, "data": forget.fingerprint, "rows": rows}, indent=None)
        changed, total = _changed(forget.encoded, found)
        log.info("%d of %d generic labels differ from the label of the row", changed, total)
        if not changed:
            stages.notice(
                "whp: every generic label equals the label of the row, so the model learns the rows again: "
                "increase procedure.args.alpha, or train the stage `reinforced` longer"
            )
    stored = runtime.from_rank_0(lambda: read_json(path))
    if stored["data"] != forget.fingerprint:
        raise UserError(
            f"{path} belongs to other forget rows: they have changed since the run began",
            "restore those rows, or set overwrite=true to start again",
        )
    stages.finetune(with_targets(forget, [row["generic"] for row in stored["rows"]]))


def generic_logits(baseline_BNV: Tensor, reinforced_BNV: Tensor, alpha: float) -> Tensor:
    """v_baseline - alpha relu(v_reinforced - v_baseline), [B, N, V] float32 (arXiv:2310.02238, Equation 1).

    Logits that did not grow equal those of the baseline.
    """
    baseline_BNV = baseline_BNV.float()
    return baseline_BNV - alpha * torch.relu(reinforced_BNV.float() - baseline_BNV)


def generic_labels(
    baseline: Loaded,
    reinforced: Loaded,
    rows: Sequence[Encoded],
    *,
    alpha: float,
    pad_id: int,
) -> list[list[int]]:
    """For each row, the generic label at each of its label positions, in order.

    Both models are in memory (the one before unlearning, and the one finetuned further on the rows), and
    ranks share the rows. A forward pass has at most `MAX_TOKENS` padded tokens.
    """
    models: list[Any] = [baseline.model, reinforced.model]
    found: dict[int, list[int]] = {}
    batches = token_budgeted_batches([len(item) for item in rows], MAX_TOKENS)
    parallel = Parallel.here()
    for batch in parallel.mine(batches):
        side = collate([rows[number] for number in batch], pad_id)
        with torch.no_grad():
            first, second = (
                label_outputs(model, on_device(side, next(model.parameters()).device)) for model in models
            )
            there_BNV = second.logits_BNV.to(first.logits_BNV.device)
            generic_BN = generic_logits(first.logits_BNV, there_BNV, alpha).argmax(-1).cpu()
        for number, token_N, mask_N in zip(batch, generic_BN, first.mask_BN.cpu(), strict=True):
            found[number] = token_N[mask_N].tolist()
    shared = parallel.merged(found)
    return [shared[number] for number in range(len(rows))]


def with_targets(rows: Dataset, labels: Sequence[Sequence[int]]) -> Dataset:
    """The same rows with other tokens to predict at their labels, in order; the input does not change."""
    encoded = []
    for item, tokens in zip(rows.encoded, labels, strict=True):
        assert len(tokens) == sum(item.label_mask), f"{len(tokens)} tokens for the labels of {item.row_id}"
        rest = iter(tokens)
        targets = tuple(
            next(rest) if counted else own
            for own, counted in zip(item.input_ids, item.label_mask, strict=True)
        )
        encoded.append(replace(item, targets=targets))
    return replace(rows, encoded=encoded, alternates=None)


def _changed(rows: Sequence[Encoded], labels: Sequence[Sequence[int]]) -> tuple[int, int]:
    own = [token for item in rows for token in item.label_ids]
    generic = [token for tokens in labels for token in tokens]
    return sum(one != other for one, other in zip(own, generic, strict=True)), len(own)
