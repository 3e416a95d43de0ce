"""Two ranks (gloo) give the scores of one, together, and one of them writes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.data.encoded import Encoded
from expunge.evaluation.collect.choices import collect_choices
from expunge.evaluation.collect.collector import Cost
from expunge.evaluation.views import examples_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def on_two_ranks(job: Callable[[int], None]) -> None:
    """Run `job(rank)` in two forked processes that are in one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.distributed.init_process_group(
                    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
                )
                job(rank)
                torch.distributed.destroy_process_group()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def plain(folder: Path) -> Any:
    """A result file without what was counted and timed."""
    data = json.loads((folder / "TOFU_EVAL.json").read_text())
    return {name: node for name, node in data.items() if name != "_about"}


def test_two_ranks_are_one(evaluate: Any, tmp_path: Path) -> None:
    # Batches of one row's tokens, so that both ranks have some of every collector's work.
    one = evaluate(tmp_path / "one", "eval.tofu.batch_size=1")

    def both(rank: int) -> None:
        scores = evaluate(tmp_path / "two", "eval.tofu.batch_size=1")
        cost = scores.about["cost"]["tokens"]["forward_tokens"]
        assert 0 < cost < one.about["cost"]["tokens"]["forward_tokens"]
        (tmp_path / f"rank{rank}.json").write_text(json.dumps(scores.aggregates()))
        again = evaluate(tmp_path / "two", "eval.tofu.batch_size=1")
        assert again.from_files  # also on the rank that reads no file

    on_two_ranks(both)
    assert json.loads((tmp_path / "rank0.json").read_text()) == json.loads(
        (tmp_path / "rank1.json").read_text()
    )
    assert plain(tmp_path / "two") == plain(tmp_path / "one")


def test_two_ranks_read_the_same_letters(tiny_model: Any, tmp_path: Path) -> None:
    """Three questions of two letters, a question a batch: one rank has two of them, the other one."""
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
    one = collect_choices(model, encoded, rows, pad_id=0, batch_size=1).logp_B

    def both(rank: int) -> None:
        cost = Cost()
        assert (
            collect_choices(model, encoded, rows, pad_id=0, batch_size=1, cost=cost).logp_B.tolist()
            == one.tolist()
        )
        assert 0 < cost.forward_tokens < 6

    on_two_ranks(both)
