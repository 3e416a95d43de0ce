"""Shared code for the tests of adapters: rows, and a few training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.lm.logprobs import token_logp
from expunge.models.outputs import label_outputs

torch.set_num_threads(1)
LORA = {"type": "lora", "r": 4, "alpha": 8, "dropout": 0.0}


def make_side() -> Any:
    rows = [(5, 3, 9, 11, 7, 20, 31), (8, 6, 12, 2, 40), (9, 10, 13)]
    items = [
        Encoded(ids, (False,) * 2 + (True,) * (len(ids) - 2), None, 2, f"r{n}", n)
        for n, ids in enumerate(rows)
    ]
    return collate(items, 4)


def args(folder: Path | str, **more: Any) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": str(folder), **more}


def logits(model: Any, side: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(input_ids=side["input_ids"], attention_mask=side["attention_mask"]).logits
    return out[side["attention_mask"].bool()]


def train(model: Any, side: Any, steps: int = 3) -> None:
    """Train an adapter for a few steps."""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02
    )
    for _ in range(steps):
        out = label_outputs(model, side)
        loss = -token_logp(out.logits_BNV, out.label_BN)[out.mask_BN].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
