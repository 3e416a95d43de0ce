"""Several ranks (gloo) together give the scores of one rank; one of them writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import subject_of

from expunge.core.errors import UserError
from expunge.data.encoded import Encoded
from expunge.evaluation.collect.choices import collect_choices
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.views import examples_of
from expunge.lm import runtime
from ranks import on_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def each_rank(size: int, job: Callable[[int], None]) -> None:
    """Run `job(rank)` in the processes of one group."""

    def joined() -> None:
        runtime.join_ranks()
        job(runtime.rank())

    on_ranks(size, joined)


def plain(folder: Path) -> Any:
    """A result file without counts and times."""
    data = json.loads((folder / "TOFU_EVAL.json").read_text())
    return {name: node for name, node in data.items() if name != "_about"}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_are_one(size: int, evaluate: Any, tmp_path: Path) -> None:
    # Batches of one row's tokens, so that all ranks have some of every collector's work.
    one = evaluate(tmp_path / "one", "eval.tofu.batch_size=1")

    def each(rank: int) -> None:
        scores = evaluate(tmp_path / "two", "eval.tofu.batch_size=1")
        cost = scores.about["cost"]["tokens"]["forward_tokens"]
        assert 0 < cost < one.about["cost"]["tokens"]["forward_tokens"]
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(scores.aggregates()))
        again = evaluate(tmp_path / "two", "eval.tofu.batch_size=1")
        assert again.from_files  # also on the rank that reads no file

    each_rank(size, each)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(size)]
    assert all(aggregates == found[0] for aggregates in found)
    assert plain(tmp_path / "two") == plain(tmp_path / "one")


def test_two_ranks_read_the_same_letters(tiny_model: Any, tmp_path: Path) -> None:
    """Three questions of two letters, one question per batch: one rank has two of them, the other one."""
    encoded = [
        Encoded(
            (*(5, 6, 7)[: 1 + row], 8 + place),
            (False,) * (1 + row) + (True,),
            None,
            1 + row,
            f"row{row}",
            row,
            place,
            "A",
        )
        for row in range(3)
        for place in range(2)
    ]
    rows, model = examples_of(encoded, ["row0", "row1", "row2"]), tiny_model()
    one = collect_choices(subject_of(model, batch_size=1), encoded, rows, Cost()).logp_B

    def both(rank: int) -> None:
        cost = Cost()
        subject = subject_of(model, batch_size=1)
        assert collect_choices(subject, encoded, rows, cost).logp_B.tolist() == one.tolist()
        assert 0 < cost.forward_tokens < 6

    each_rank(2, both)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_every_rank_makes_the_same_collective_calls(
    batch_size: int, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks: with 32 rows per batch most have no batch of a view; with 1 their numbers differ."""
    calls: list[str] = []
    for name in ("all_gather_object", "broadcast_object_list"):
        real = getattr(torch.distributed, name)

        def counted(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(torch.distributed, name, counted)

    def each(rank: int) -> None:
        evaluate(tmp_path / "run", f"eval.tofu.batch_size={batch_size}")
        (tmp_path / f"{rank}.json").write_text(json.dumps(calls))

    each_rank(3, each)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0].count("all_gather_object") >= 3


def test_a_fault_of_one_rank_is_raised_on_the_first_and_ends_the_others(tmp_path: Path) -> None:
    def refuse(message: str) -> str:
        raise UserError(message, "a hint")

    def each(rank: int) -> None:
        assert runtime.agreed(lambda: rank) == rank
        for name, job in {
            "of rank 1": lambda: runtime.agreed(lambda: refuse("file 7") if rank == 1 else "read"),
            "of all": lambda: runtime.agreed(lambda: refuse("the same")),
            "of rank 0": lambda: runtime.from_rank_0(lambda: refuse("full")),
        }.items():
            try:
                job()
            except UserError as error:
                found = [str(fault) for fault in error.faults]
            except SystemExit as end:
                found = [f"ends with {end.code}"]
            (tmp_path / f"{name} {rank}.json").write_text(json.dumps(found))

    each_rank(3, each)
    reported = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    quiet = ["ends with 0"]
    for name, message in {"of rank 1": "file 7", "of all": "the same", "of rank 0": "full"}.items():
        assert reported[f"{name} 0"] == [f"{message}\n  -> a hint"]
        assert reported[f"{name} 1"] == reported[f"{name} 2"] == quiet


def test_joining_reads_the_launchers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, or a cluster's variables without a launcher, means a single rank."""
    for variables in ({}, {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, {"WORLD_SIZE": "2"}):
        with monkeypatch.context() as patch:
            for name in ("WORLD_SIZE", "MASTER_ADDR"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            runtime.join_ranks()
        assert runtime.world_size() == 1
