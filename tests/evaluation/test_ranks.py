"""Two ranks (gloo) share the passes and find what one rank finds; rank 0 writes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def on_two_ranks(job: Callable[[int], None]) -> None:
    """Run `job(rank)` in two forked processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
                job(rank)
                torch.distributed.destroy_process_group()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def test_one_rank_is_two_ranks(evaluate: Any, tmp_path: Path) -> None:
    small = ("eval.tofu.batch_size=1", "eval.tofu.share_prefixes=false")  # many batches, so that both ranks have some

    def job(rank: int) -> None:
        scores = evaluate(tmp_path / "two", *small)
        again = evaluate(tmp_path / "two", *small)  # rank 0 reads the files, rank 1 is told what is in them
        (tmp_path / f"rank{rank}.json").write_text(json.dumps([scores.aggregates(), again.aggregates(), again.from_files, scores.about]))

    on_two_ranks(job)
    one = evaluate(tmp_path / "one", *small)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    share = [rank[3]["cost"]["tokens"]["forward_tokens"] for rank in ranks]
    assert sum(share) == one.about["cost"]["tokens"]["forward_tokens"]
    assert min(share) > 0
    for first, again, from_files, _ in ranks:
        assert from_files
        assert first == again
        for name, value in one.aggregates().items():
            assert first[name] == (value if value is None else pytest.approx(value, rel=1e-5)), name
    written = json.loads((tmp_path / "two" / "TOFU_SUMMARY.json").read_text())
    assert written == ranks[0][0]
