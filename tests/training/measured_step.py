"""Train in this process, and print the peak of its memory above the level of its imports, in bytes.

    python measured_step.py '{"config": {...}, "rows": 4, "tokens": 64, "labels": 40, ...}' FOLDER

The loop, the driver and the optimizer are the run's own; the weights are random. The caller must set
`MALLOC_MMAP_THRESHOLD_`: then freed buffers return to the system at once, and resident memory is used memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.data.collate import PairCollator
from expunge.data.encoded import Encoded
from expunge.methods.objective import build_objective
from expunge.models.adapter_reference import reference_for
from expunge.models.adapters import attach_adapter
from expunge.models.reference import CachedReference
from expunge.training.arguments import training_arguments
from expunge.training.loop import Training

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


class Pairs:
    """Rows of one length, each with its labels at the end."""

    def __init__(self, case: dict[str, Any]) -> None:
        tokens, labels, rows = case["tokens"], case["labels"], case["rows"] * 2
        mask = (False,) * (tokens - labels) + (True,) * labels
        self.items = [
            Encoded((1,) * tokens, mask, None, tokens - labels, str(row), row) for row in range(rows)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Encoded]:
        return {"forget": self.items[index], "retain": self.items[index]}

    def set_epoch(self, epoch: int) -> None:
        """All epochs are alike."""


def train(case: dict[str, Any], folder: Path) -> None:
    """Two optimizer steps."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**case["config"]))
    if case.get("lora"):
        model = attach_adapter(model, {"type": "lora", **case["lora"]}, for_training=True)
    rows = Pairs(case)
    objective = build_objective(
        case.get("method", "expunge.methods.npo:npo"), {"retain": case.get("retain", "nll")}
    )
    objective.prepare(model, 0)
    args = {
        "per_device_train_batch_size": case["rows"],
        "gradient_accumulation_steps": case.get("accumulation", 1),
        "gradient_checkpointing": case.get("checkpointing", False),
        "bf16": case.get("bf16", False),
        "max_steps": 2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    dtype = torch.bfloat16 if case.get("bf16") else None
    view = {"forget": rows.items}
    training = Training(
        model,
        training_arguments(args, folder, len(rows), seed=0),
        objective=objective,
        dataset=rows,
        collate=PairCollator(0),
        reference=reference_for(
            model,
            objective.needs,
            cached=lambda: CachedReference.compute(
                model, view, folder, pad_id=0, autocast_dtype=dtype, max_tokens=256
            ),
            asked=case.get("reference", "auto"),
            autocast_dtype=dtype,
        ),
    )
    training.run()


def memory(key: str) -> int:
    """A line of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{key}:"))


def main() -> None:
    """Train a tiny model first, which imports what is imported late; then the one asked for."""
    case, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    train({**case, "config": TINY, "tokens": 8, "labels": 4, "lora": case.get("lora")}, folder / "tiny")
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    train(case, folder / "run")
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
