"""NPO with cached log-probs of the reference, against a frozen copy of the model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.comparison import Comparison, Ratio
from benchmarks.isolated import best_of

HANDLER = "expunge.methods.npo:npo"


def compare(quick: bool) -> Comparison:
    """Step time and peak memory of both, each in a separate process, in turn, twice."""
    model = (
        {"hidden": 64, "layers": 2, "vocabulary": 512}
        if quick
        else {"hidden": 640, "layers": 10, "vocabulary": 16384}
    )
    work = {"batch_size": 4, "length": 32 if quick else 64, "steps": 3 if quick else 6}
    calls = {
        kind: ("benchmarks.reference:measure", {"kind": kind, **model, **work})
        for kind in ("frozen", "cached")
    }
    found = best_of(1 if quick else 2, calls)
    frozen, cached = found["frozen"], found["cached"]
    ratios = [
        Ratio("step time, cached / frozen", cached["seconds_per_step"] / frozen["seconds_per_step"]),
        Ratio("peak memory, cached / frozen", cached["peak_memory_mb"] / frozen["peak_memory_mb"]),
        Ratio(
            "caching a row / training on it once",
            cached["caching_seconds_per_row"] / cached["training_seconds_per_row"],
        ),
    ]
    remarks = [
        "The frozen copy costs memory for its weights and a forward pass of the forget rows in every step. "
        "The cache costs one forward pass of each row before the first step, for any number of epochs."
    ]
    named = {"frozen copy (baseline)": frozen, "cached log-probs": cached}
    return Comparison(
        "NPO: cached reference against a frozen copy",
        {**model, **work, "dtype": "float32"},
        named,
        ratios,
        remarks,
    )


def measure(
    kind: str, hidden: int, layers: int, vocabulary: int, batch_size: int, length: int, steps: int
) -> dict[str, float]:
    """In a separate process: a model, a reference of the given kind, a few steps of NPO."""
    from benchmarks import workload
    from expunge.methods.objective import build_objective
    from expunge.models.reference import CachedReference, FrozenCopy

    model = workload.llama(hidden, layers, vocabulary)
    count = batch_size * steps
    lengths = (length, length * 3 // 4, length // 2, length)
    forget, retain = (workload.dataset(count, name, vocabulary, lengths) for name in ("forget", "retain"))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reference = (
            FrozenCopy(model)
            if kind == "frozen"
            else CachedReference.compute(
                model,
                {"forget": forget.encoded},
                Path(folder),
                pad_id=workload.PAD,
                max_tokens=batch_size * length,
            )
        )
        prepared = time.perf_counter() - begun
        found = workload.unlearn(
            model,
            forget,
            retain,
            objective=build_objective(HANDLER, {}),
            batch_size=batch_size,
            reference=reference,
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "seconds_per_step": found["seconds_per_step"],
        "peak_memory_mb": found["peak_memory_mb"],
        "training_seconds_per_row": found["seconds_per_step"] / batch_size,
        "caching_seconds_per_row": prepared / count if kind == "cached" else 0.0,
    }
