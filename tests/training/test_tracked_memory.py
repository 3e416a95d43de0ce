"""Planned memory equals real memory: trackers against real processes, formulas against trackers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from expunge.config.shape import shape_of
from expunge.core.footprint import Parts, peak
from expunge.core.job import Adapter, Job, Load
from expunge.methods.objective import build_objective
from expunge.models import memory_tracker
from expunge.models.adapter_args import AdapterArgs
from expunge.models.weightless import without_weights
from expunge.training.tracked_memory import track

MEASURED_STEP = Path(__file__).with_name("measured_step.py")
SMALL = {"vocab_size": 16000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}  # fmt: skip
MIDDLE = {"vocab_size": 24000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6,
          "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
LARGE = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
SIZES = {"small": SMALL, "middle": MIDDLE, "large": LARGE}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"method": "expunge.methods.grad_diff:grad_diff"},
    "cached": {},
    "checkpointed": {"checkpointing": True},
    "frozen": {"retain": "kl"},
    "lora": {"lora": {"r": 8}},
}
needs_trackers = pytest.mark.skipif(bool(memory_tracker.why_not()), reason=memory_tracker.why_not())


def job_of_case(case: dict[str, Any]) -> Job:
    """The job of a case of `measured_step`."""
    shape = shape_of({**LlamaConfig(**case["config"]).to_dict()})
    assert shape is not None
    adapter, trained = None, shape.total
    if case.get("lora"):
        wide, narrow = shape.hidden, shape.intermediate
        inputs, outputs = (
            5 * wide + shape.queries + narrow,
            shape.queries + 2 * shape.keys + 2 * wide + 2 * narrow,
        )
        adapter = Adapter(case["lora"]["r"], inputs, outputs, dropout=True)
        trained = adapter.rank * (inputs + outputs) * shape.layers
    frozen = case.get("retain") == "kl"
    load = Load("forget", case["rows"], case["tokens"], case["rows"] * case["labels"])
    retain = Load("retain", load.rows, load.tokens, load.labels, reference=frozen, whole_distribution=frozen)
    half = bool(case.get("bf16"))
    return Job(
        shape,
        trained,
        shape.total if adapter else 0,
        ((load,), (retain,)),
        case.get("accumulation", 1),
        frozen_width=2 if half and adapter else 4,
        compute_width=2 if half else 4,
        checkpointing=case.get("checkpointing", False),
        reference="frozen" if frozen else "none" if "method" in case else "cached",
        adapter=adapter,
    )


def tracked(case: dict[str, Any], job: Job, *, ranks: int = 1, for_gpu: bool = False) -> Parts:
    """The peak of a case by the trackers."""
    objective = build_objective(
        case.get("method", "expunge.methods.npo:npo"), {"retain": case.get("retain", "nll")}
    )
    adapter = AdapterArgs(type="lora", **case["lora"]) if case.get("lora") else None
    dtype = torch.bfloat16 if job.frozen_width == 2 else torch.float32
    with torch.device("meta"):
        config = LlamaConfig(**case["config"])
        model = without_weights(config, adapter, dtype=dtype, masked=False, for_gpu=for_gpu)
        objective.prepare(model, 0)
    if job.checkpointing:
        model.gradient_checkpointing_enable()

    def stepping(model: Any) -> Any:
        return torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad], fused=True
        ), []

    return track(job, ranks, model, objective, stepping, 1.0)


def measured(case: dict[str, Any], folder: Path) -> int:
    """The peak of a case above the level of its imports, in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "262144",
        "MALLOC_TRIM_THRESHOLD_": "262144",
    }
    command = [sys.executable, str(MEASURED_STEP), json.dumps(case), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def case_of(size: str, kind: str) -> dict[str, Any]:
    return {"config": SIZES[size], "rows": 4, "tokens": 96, "labels": 48, **KINDS[kind]}


def check_against_process(case: dict[str, Any], folder: Path) -> None:
    found = tracked(case, job_of_case(case)).total
    real = measured(case, folder)
    print(f"planned {found / 2**20:.0f} MiB, measured {real / 2**20:.0f} MiB, {found / real - 1:+.1%}")
    assert abs(found / real - 1) <= 0.08


@needs_trackers
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_what_is_planned_is_what_a_process_holds(tmp_path: Path) -> None:
    check_against_process(case_of("small", "cached"), tmp_path)


@needs_trackers
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_planned_is_what_a_process_holds_for_each_kind(size: str, kind: str, tmp_path: Path) -> None:
    check_against_process(case_of(size, kind), tmp_path)


@needs_trackers
@pytest.mark.parametrize(
    ("kind", "bf16"),
    [
        pytest.param(kind, bf16, marks=() if (kind, bf16) == ("cached", True) else pytest.mark.slow)
        for kind in KINDS
        for bf16 in (False, True)
    ],
)
def test_formulas_agree_with_the_trackers(kind: str, bf16: bool) -> None:
    case = {**case_of("small", kind), "bf16": bf16}
    job = job_of_case(case)
    found = tracked(case, job, for_gpu=True)
    assert abs(peak(job).total / found.total - 1) <= 0.15, (peak(job), found)


@needs_trackers
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cached", "checkpointed"])
@pytest.mark.parametrize("ranks", [2, 64])
def test_formulas_agree_with_the_trackers_for_sharded_weights(kind: str, ranks: int) -> None:
    case = {**case_of("large", kind), "bf16": True}
    job = job_of_case(case)
    job = Job(**{**job.__dict__, "engine": "fsdp2"})
    found = tracked(case, job, ranks=ranks, for_gpu=True)
    assert abs(peak(job, ranks).total / found.total - 1) <= 0.15, (peak(job, ranks), found)


def test_the_trackers_are_those_of_the_torch_that_is_installed() -> None:
    """Another torch: look at `models.memory_tracker`, run the slow tests of this file, then raise TORCH."""
    assert torch.__version__.startswith(f"{memory_tracker.TORCH}.")
    assert memory_tracker.why_not() == ""


def test_another_torch_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_tracker, "TORCH", "1.0")
    assert "torch is" in memory_tracker.why_not()
