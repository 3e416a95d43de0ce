"""An NPO step of the driver against a hand-written loop for NPO only."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.comparison import Comparison, Ratio
from benchmarks.isolated import best_of, isolated

TARGET = 1.05
BETA = 0.1
VARIANTS = ("by hand", "driver")


def compare(quick: bool) -> Comparison:
    """CPU time of both in turn in one process; peak memory of each in a separate process."""
    model = (
        {"hidden": 64, "layers": 2, "vocabulary": 512}
        if quick
        else {"hidden": 256, "layers": 6, "vocabulary": 16384}
    )
    work = {**model, "batch_size": 4 if quick else 8}
    seconds = isolated("benchmarks.hot_path:cpu_seconds", None, **work, steps=4 if quick else 20)
    calls = {name: ("benchmarks.hot_path:peak", {**work, "variant": name}) for name in VARIANTS}
    memory = best_of(1 if quick else 2, calls)
    hand, ours = ({"cpu_seconds_per_step": seconds[name], **memory[name]} for name in VARIANTS)
    time_ratio = ours["cpu_seconds_per_step"] / hand["cpu_seconds_per_step"]
    memory_ratio = ours["peak_memory_mb"] / hand["peak_memory_mb"]
    ratios = [
        Ratio("CPU time, driver / by hand", time_ratio, f"at most {TARGET}", time_ratio <= TARGET),
        Ratio("peak memory, driver / by hand", memory_ratio, "at most 1.01", memory_ratio <= 1.01),
    ]
    remarks = [
        "Both collate, run forward and backward on the forget and the retain rows and update the weights, "
        "in one thread; the reference's log-probs are computed in advance. The loop by hand gathers the "
        "label positions before the vocabulary projection and back-propagates one side after the other. "
        "CPU times are medians over steps of the two in turn.",
    ]
    return Comparison(
        "NPO step: the driver against a loop by hand",
        {**work, "dtype": "float32", "threads": 1},
        {"by hand (baseline)": hand, "driver": ours},
        ratios,
        remarks,
    )


def cpu_seconds(hidden: int, layers: int, vocabulary: int, batch_size: int, steps: int) -> dict[str, float]:
    """In a separate process: the median CPU time of a step of each, with one step of each in turn."""
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    run = {name: _variant(name, hidden, layers, vocabulary, batch_size) for name in VARIANTS}
    for number in range(steps + 2):
        for name in VARIANTS if number % 2 else reversed(VARIANTS):
            begun = time.process_time()
            run[name](number)
            if number >= 2:
                taken[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak(hidden: int, layers: int, vocabulary: int, batch_size: int, variant: str) -> dict[str, float]:
    """In a separate process: the peak memory of a few steps."""
    from expunge.training.pace import peak_memory_mb

    step = _variant(variant, hidden, layers, vocabulary, batch_size)
    for number in range(4):
        step(number)
    return {"peak_memory_mb": peak_memory_mb()}


def _variant(
    name: str, hidden: int, layers: int, vocabulary: int, batch_size: int
) -> Callable[[int], object]:
    """A function that makes one optimizer step on rows of 24 to 96 tokens."""
    import torch

    from benchmarks import workload

    torch.set_num_threads(1)
    model = workload.llama(hidden, layers, vocabulary).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    lengths = (24, 96, 40, 64)
    data = {side: workload.rows(4 * batch_size, side, vocabulary, lengths) for side in ("forget", "retain")}
    make = {"by hand": _by_hand, "driver": _driver}[name]
    backward = make(model, data)

    def step(number: int) -> object:
        start = number % 4 * batch_size
        items = [
            {side: rows[place] for side, rows in data.items()} for place in range(start, start + batch_size)
        ]
        loss = backward(items)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def _driver(model: Any, data: Any) -> Callable[[list[Any]], object]:
    import torch

    from benchmarks import workload
    from expunge.data.collate import PairCollator
    from expunge.methods.objective import build_objective
    from expunge.models.logp_table import LogpTable
    from expunge.models.reference import CachedReference
    from expunge.training.driver import Driver, count_step
    from expunge.training.order import CollateMicroBatch

    by_row = {
        item.row: (torch.full((len(labels),), -9.0), torch.tensor(labels))
        for item in data["forget"]
        for labels in [
            [token for token, is_label in zip(item.input_ids, item.label_mask, strict=True) if is_label]
        ]
    }
    objective = build_objective("expunge.methods.npo:npo", {"beta": BETA})
    driver = Driver(objective, CachedReference({"forget": LogpTable.of(by_row)}))
    collate = CollateMicroBatch(PairCollator(workload.PAD), objective.elsewhere)

    def backward(items: list[Any]) -> object:
        batch = collate([(item, True) for item in items])
        counts = count_step([batch], ["forget", "retain"], lambda total: total)
        return driver.backward(model, batch, counts, lambda loss: loss.backward())[0]

    return backward


def _by_hand(model: Any, data: Any) -> Callable[[list[Any]], object]:
    import torch
    from torch.nn.functional import cross_entropy, logsigmoid

    def label_nll(rows: list[Any]) -> tuple[Any, Any]:
        width = max(len(row.input_ids) for row in rows)
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BT, label_BT = torch.zeros_like(ids_BT), torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row.input_ids)] = torch.tensor(row.input_ids)
            mask_BT[number, : len(row.input_ids)] = 1
            label_BT[number, : len(row.input_ids)] = torch.tensor(row.label_mask)
        row_M, at_M = label_BT[:, 1:].nonzero(as_tuple=True)
        hidden_BTD = model.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        hidden_MD = hidden_BTD.flatten(0, 1).index_select(0, row_M * width + at_M)
        return cross_entropy(model.lm_head(hidden_MD), ids_BT[row_M, at_M + 1], reduction="none"), row_M

    def backward(items: list[Any]) -> object:
        forget = [item["forget"] for item in items]
        nll_M, row_M = label_nll(forget)
        seq_B = torch.zeros(len(items)).index_add(0, row_M, -nll_M)
        ref_B = torch.tensor([-9.0 * sum(row.label_mask[1:]) for row in forget])
        loss = -(2 / BETA) * logsigmoid(-BETA * (seq_B - ref_B)).mean()
        loss.backward()
        retain = label_nll([item["retain"] for item in items])[0].mean()
        retain.backward()
        return loss.detach() + retain.detach()

    return backward
