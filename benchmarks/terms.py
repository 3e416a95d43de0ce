"""Forget and retain term back-propagated one after the other, or both together."""

from __future__ import annotations

from benchmarks.comparison import Comparison, Ratio
from benchmarks.isolated import best_of

HANDLER = "expunge.methods.grad_diff:grad_diff"


def compare(quick: bool) -> Comparison:
    """Step time and peak memory of both, on a model whose activations need more memory than its weights."""
    model = (
        {"hidden": 64, "layers": 2, "vocabulary": 512}
        if quick
        else {"hidden": 256, "layers": 6, "vocabulary": 4096}
    )
    work = {"batch_size": 4 if quick else 8, "length": 32 if quick else 256, "steps": 3 if quick else 5}
    kinds = {"joint": False, "sequential": True}
    calls = {
        kind: ("benchmarks.terms:measure", {"sequential": value, **model, **work})
        for kind, value in kinds.items()
    }
    found = best_of(1 if quick else 2, calls)
    joint, sequential_ = found["joint"], found["sequential"]

    def activations(values: dict[str, float]) -> float:
        return values["peak_memory_mb"] - values["before_training_mb"] - values["weights_mb"] * 3

    ratios = [
        Ratio("step time, sequential / joint", sequential_["seconds_per_step"] / joint["seconds_per_step"]),
        Ratio("peak memory, sequential / joint", sequential_["peak_memory_mb"] / joint["peak_memory_mb"]),
        Ratio(
            "the same, without weights, gradients and moments", activations(sequential_) / activations(joint)
        ),
    ]
    named = {"joint (baseline)": joint, "sequential": sequential_}
    remarks = [
        "The gradient is the same up to the order of additions (tested). GradDiff has one forget term and "
        "one retain term."
    ]
    return Comparison(
        "Terms back-propagated one after the other",
        {**model, **work, "dtype": "float32"},
        named,
        ratios,
        remarks,
    )


def measure(
    sequential: bool, hidden: int, layers: int, vocabulary: int, batch_size: int, length: int, steps: int
) -> dict[str, float]:
    """In a separate process: a few steps of GradDiff."""
    from benchmarks import workload
    from expunge.methods.objective import build_objective
    from expunge.training.pace import peak_memory_mb

    model = workload.llama(hidden, layers, vocabulary)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20
    before = peak_memory_mb()
    forget, retain = (
        workload.dataset(batch_size * steps, name, vocabulary, (length,)) for name in ("forget", "retain")
    )
    found = workload.unlearn(
        model,
        forget,
        retain,
        objective=build_objective(HANDLER, {}),
        batch_size=batch_size,
        sequential_terms=sequential,
    )
    return {**found, "before_training_mb": before, "weights_mb": weights}
