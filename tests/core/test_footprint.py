"""Formulas of memory and time on hand-worked numbers, and the first change for a job that does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.core.footprint import peak, reference_bytes
from expunge.core.job import Adapter, Job, Load, Shape
from expunge.core.remedies import changes, first_that_fits
from expunge.core.step_cost import LATENCY, Figure, Speed, cost

LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
FORGET, RETAIN = Load("forget", 8, 256, 512), Load("retain", 8, 256, 512)


def job(**changed: object) -> Job:
    shape = LLAMA_8B
    return replace(Job(shape, shape.total, 0, ((FORGET,), (RETAIN,)), compute_width=2), **changed)  # type: ignore[arg-type]


def test_weights_of_llama_3_1_8b() -> None:
    """32 (2 4096 (4096 + 1024) + 3 4096 14336) + 2 128256 4096 + 65 4096 = 8,030,261,248 (published)."""
    assert LLAMA_8B.total == 8_030_261_248


def test_states_are_16_bytes_a_weight_and_are_split_by_sharding() -> None:
    whole, split = peak(job()), peak(job(engine="fsdp2"), 64)
    assert (whole.weights + whole.gradients + whole.optimizer) / LLAMA_8B.total == 16
    assert split.weights == whole.weights / 64
    assert split.optimizer == whole.optimizer / 64


def test_ddp_keeps_a_copy_of_all_gradients_in_buckets() -> None:
    assert peak(job(), 8).gradients - peak(job(), 1).gradients == 4 * LLAMA_8B.total


def test_a_low_rank_adapter_trains_its_own_weights_alone() -> None:
    """Rank 8 over 100 inputs and 60 outputs a layer: 8 160 32 = 40,960 weights; moments 8 bytes each."""
    lora = job(
        adapter=Adapter(8, 100, 60, dropout=True), trained=40_960, frozen=LLAMA_8B.total, frozen_width=2.0
    )
    found = peak(lora)
    assert found.optimizer == 8 * 40_960
    assert found.weights == 4 * 40_960 + 2 * LLAMA_8B.total


def test_only_a_frozen_copy_has_weights_of_its_own() -> None:
    assert [reference_bytes(job(reference=kind)) for kind in ("none", "cached", "adapter_off")] == [0, 0, 0]
    assert reference_bytes(job(reference="frozen")) > 2 * LLAMA_8B.total
    assert (
        reference_bytes(job(reference="frozen", engine="fsdp2"), 8)
        == reference_bytes(job(reference="frozen")) / 8
    )


def test_fewer_rows_keep_the_rows_of_a_step() -> None:
    smaller = job(micro_batches=2).with_rows(2)
    assert (smaller.rows, smaller.micro_batches, smaller.loads[0].labels) == (2, 8, 128)
    assert peak(smaller).activations < peak(job()).activations


def test_changes_come_cheapest_first() -> None:
    names = [change.name.split(" (")[0] for change in changes(job(), 8)]
    assert names == [
        "gradient checkpointing", "micro-batches of 4", "micro-batches of 2", "micro-batches of 1",
        "sharded weights", "sharded, offloaded weights",
    ]  # fmt: skip


def test_a_live_reference_is_cached_before_anything_else() -> None:
    live = tuple((replace(load, reference=True),) for load in (FORGET, RETAIN))
    assert next(changes(job(reference="frozen", groups=live), 1)).name.startswith("cached reference")


def test_the_first_change_that_fits_is_found_and_changes_are_added_where_one_is_not_enough() -> None:
    found = first_that_fits(job(), 8, 80 * 2**30)
    assert found is not None
    assert found[0].name.startswith("sharded weights")
    added = first_that_fits(job(engine="fsdp2"), 8, 22 * 2**30)
    assert added is not None
    assert added[1].total <= 22 * 2**30
    assert first_that_fits(job(), 1, 2**30) is None


@pytest.mark.parametrize(("checkpointing", "operations"), [(False, 6), (True, 8)])
def test_operations_of_a_weight_and_token(checkpointing: bool, operations: int) -> None:
    spent = cost(job(checkpointing=checkpointing), 1, Speed(flops=Figure(1e15)))
    assert spent.operations == operations * LLAMA_8B.total * 2 * 8 * 256
    assert spent.sent == 0
    assert spent.seconds == spent.operations / 1e15 + LATENCY.value


def test_weights_split_inside_a_node_send_only_gradients_to_other_nodes() -> None:
    """16 GPUs of 2 nodes: 8 P (8 - 1) / 8 inside per pass, and 2 4 P / 8 (2 - 1) / 2 across per step."""
    speed, parameters = Speed(flops=Figure(1e30)), LLAMA_8B.total
    spent = cost(job(engine="hsdp"), 16, speed)
    inside, across = 2 * 8 * parameters * 7 / 8, 2 * 4 * parameters / 8 / 2
    assert spent.sent == inside + across
    assert spent.seconds == pytest.approx(inside / 400e9 + across / 50e9 + LATENCY.value)
    assert spent.seconds < cost(job(engine="fsdp2"), 16, speed).seconds
    assert peak(job(engine="hsdp"), 64) == peak(job(engine="fsdp2"), 8)


def test_terms_in_one_pass_halve_the_bytes_and_hold_all_activations() -> None:
    apart, joint = job(engine="fsdp2"), job(engine="fsdp2", sequential=False)
    assert cost(joint, 8, Speed()).sent == cost(apart, 8, Speed()).sent / 2
    assert peak(joint, 8).activations > 1.5 * peak(apart, 8).activations
    assert next(changes(joint, 8)).name.startswith("terms one after the other")


def test_bytes_of_sharding_are_paid_for_each_pass() -> None:
    """(2 + 2 + 4) P (W - 1) / W a pass, and a step of two groups in two micro-batches has four passes."""
    spent = cost(job(engine="fsdp2", micro_batches=2), 8, Speed())
    assert spent.sent == 4 * 8 * LLAMA_8B.total * 7 / 8
