"""Cost for more rows: time per token and memory of the evaluation's pass and of training."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from benchmarks.comparison import Comparison, Ratio
from benchmarks.isolated import best_of

FACTORS = (1, 4, 16)
FLAT = 1.15
AS_MUCH = 2048
"""Total number of rows that each size processes."""


def compare_evaluation(quick: bool) -> Comparison:
    """The pass that collects token statistics."""
    settings = {
        "hidden": 64 if quick else 192,
        "layers": 4,
        "vocabulary": 4096,
        "batch_size": 8,
        "lengths": [48, 96, 64, 80],
    }
    return _compare(
        "Cost for more rows: the evaluation's token pass",
        "benchmarks.rows:evaluation",
        16 if quick else 128,
        settings,
        quick,
    )


def compare_training(quick: bool) -> Comparison:
    """One epoch of unlearning."""
    settings = {
        "hidden": 64 if quick else 128,
        "layers": 4,
        "vocabulary": 4096,
        "batch_size": 8,
        "lengths": [72],
    }
    return _compare(
        "Cost for more rows: training", "benchmarks.rows:training", 16 if quick else 64, settings, quick
    )


def _compare(title: str, function: str, smallest: int, settings: dict[str, Any], quick: bool) -> Comparison:
    calls = {f"x{factor}": (function, {"count": smallest * factor, **settings}) for factor in FACTORS}
    found = best_of(1 if quick else 2, calls)
    ratios = []
    for factor in FACTORS[1:]:
        for what, key in (("time per token", "microseconds_per_token"), ("peak memory", "peak_memory_mb")):
            value = found[f"x{factor}"][key] / found["x1"][key]
            ratios.append(Ratio(f"{what}, x{factor} / x1", value, "at most 15 % more", value <= FLAT))
    named = {
        f"x{factor}: {smallest * factor} rows" + (" (baseline)" if factor == 1 else ""): found[f"x{factor}"]
        for factor in FACTORS
    }
    return Comparison(title, {**settings, "dtype": "float32"}, named, ratios)


def evaluation(
    count: int, hidden: int, layers: int, vocabulary: int, batch_size: int, lengths: list[int]
) -> dict[str, float]:
    """In a separate process: the statistics of `count` rows, as one view."""
    from benchmarks import workload
    from expunge.evaluation.collect.collector import Cost, Subject
    from expunge.evaluation.collect.tokens import collect_tokens
    from expunge.evaluation.views import examples_of
    from expunge.training.pace import peak_memory_mb

    tokenizer = SimpleNamespace(pad_token_id=workload.PAD)
    subject = Subject(
        workload.llama(hidden, layers, vocabulary).eval(), tokenizer, {"batch_size": batch_size}
    )

    def collect(encoded: list[Any]) -> tuple[float, int]:
        view = {"rows": (encoded, examples_of(encoded, [item.row_id for item in encoded]))}
        cost, begun = Cost(), time.perf_counter()
        collect_tokens(subject, view, cost)
        return time.perf_counter() - begun, cost.forward_tokens

    encoded = workload.rows(count, "rows", vocabulary, tuple(lengths))
    collect(encoded[: 4 * batch_size])
    # Each size processes the same number of tokens: a short measurement is noisy, and the minimum of several
    # runs must not be compared with a single run.
    runs = [collect(encoded) for _ in range(max(1, AS_MUCH // count))]
    seconds, tokens = (sum(values) for values in zip(*runs, strict=True))
    return {
        "forward_tokens": tokens / len(runs),
        "microseconds_per_token": 1e6 * seconds / tokens,
        "peak_memory_mb": peak_memory_mb(),
    }


def training(
    count: int, hidden: int, layers: int, vocabulary: int, batch_size: int, lengths: list[int]
) -> dict[str, float]:
    """In a separate process: one epoch over `count` forget rows, each with a retain row."""
    from benchmarks import workload
    from expunge.methods.objective import build_objective

    model = workload.llama(hidden, layers, vocabulary)
    forget, retain = (
        workload.dataset(count, name, vocabulary, tuple(lengths)) for name in ("forget", "retain")
    )
    found = workload.unlearn(
        model,
        forget,
        retain,
        objective=build_objective("expunge.methods.grad_diff:grad_diff", {}),
        batch_size=batch_size,
    )
    return {"steps": count // batch_size, **found}
