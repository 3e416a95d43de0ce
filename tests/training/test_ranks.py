"""Two ranks (gloo, DDP) take the same steps as one rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.training.arguments import training_arguments
from ranks import on_ranks
from recorded import WALL_CLOCK, read_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize(("batch", "accumulation", "sequential"), [(2, 1, False), (1, 2, True)])
def test_one_rank_is_two_ranks(
    batch: int,
    accumulation: int,
    sequential: bool,
    trainer: Any,
    tiny_model: Any,
    objective: Any,
    tmp_path: Path,
) -> None:
    # NPO counts sequences and its retain term tokens. 13 rows in steps of 4: the last step has one row, so a
    # rank has none.
    def run(name: str, rows: int, cuts: int) -> None:
        args = {
            "num_train_epochs": 2,
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 2,
            "use_cpu": True,
        }
        sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": cuts}
        sizes |= {"ddp_backend": "gloo"} if name == "two" else {}
        extra = {"sequential_terms": sequential}
        trainer(
            folder=tmp_path / name, model=tiny_model(seed=2), task=objective(), extra=extra, **args, **sizes
        ).run()

    run("one", 4, 1)
    on_ranks(2, lambda: run("two", batch, accumulation))
    # transformers counts the fraction of an epoch, and operations, by padded micro-batches, which differ.
    apart = (*WALL_CLOCK, "total_flos", "epoch")
    records = [
        [
            {key: value for key, value in record.items() if key not in apart}
            for record in read_records(tmp_path / name)
        ]
        for name in ("one", "two")
    ]
    assert len(records[0]) == 5
    for one, two in zip(*records, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    one, two = (
        load_file(str(tmp_path / name / "checkpoint-8" / "model.safetensors")) for name in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


def test_two_ranks_resume_bit_for_bit(trainer: Any, tmp_path: Path) -> None:
    """With dropout, so that the random state of each rank matters."""
    args = {
        "per_device_train_batch_size": 1,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "use_cpu": True,
    }
    args |= {"ddp_backend": "gloo"}

    def whole_then_from_the_middle() -> None:
        trainer(folder=tmp_path / "run", **args).run()
        if os.environ["RANK"] == "0":
            (tmp_path / "run" / "checkpoint-8").rename(tmp_path / "kept")
            (tmp_path / "run" / "log.jsonl").rename(tmp_path / "log.jsonl")
            (tmp_path / "run" / "log.jsonl").write_bytes((tmp_path / "log.jsonl").read_bytes())
            (tmp_path / "run" / "checkpoint-6").rename(tmp_path / "six")
        torch.distributed.barrier()
        trainer(folder=tmp_path / "run", **args).run(True)

    on_ranks(2, whole_then_from_the_middle)
    for name in ("model.safetensors", "rng_state_1.safetensors", "sums_1.safetensors"):
        whole, resumed = (
            load_file(str(tmp_path / "kept" / name)),
            load_file(str(tmp_path / "run" / "checkpoint-8" / name)),
        )
        assert all(torch.equal(resumed[key], value) for key, value in whole.items()), name
    logs = [
        [
            {key: value for key, value in record.items() if key not in WALL_CLOCK}
            for record in read_records(folder)
        ]
        for folder in (tmp_path, tmp_path / "run")
    ]
    assert logs[0] == logs[1]


def test_a_port_in_use_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    def start(how: Callable[[], object]) -> None:
        with pytest.raises(UserError, match=r"cannot meet at 127.0.0.1:\d+.*(in use|bind|listen)"):
            how()

    def both() -> None:
        os.environ["MASTER_PORT"] = str(taken.getsockname()[1])
        if os.environ["RANK"] == "0":
            start(runtime.join_ranks)
            start(lambda: training_arguments({"ddp_backend": "gloo"}, tmp_path, 8))

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        on_ranks(1, both, world=2)
