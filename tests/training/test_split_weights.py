"""Weights that are split over processes (FSDP2 on CPUs) take the same steps as whole ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fsdp_on_cpu
from expunge.core.engine import Engine
from expunge.core.errors import UserError
from expunge.lm import runtime
from expunge.models.parallel import Parallel
from expunge.models.reference import CachedReference, FrozenCopy, Reference
from expunge.training.shared_folder import check_shared
from ranks import on_ranks
from recorded import WALL_CLOCK, read_records

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize(("ranks", "tied", "frozen"), [(2, True, False), (3, False, True)])
def test_split_weights_take_the_steps_of_whole_ones(
    ranks: int,
    tied: bool,
    frozen: bool,
    trainer: Any,
    tiny_model: Any,
    objective: Any,
    pairs: Any,
    tmp_path: Path,
) -> None:
    """FSDP2 on 2 and 3 ranks, which split most weights unequally: weights, log, resume.

    A cached reference is computed on split weights; a frozen one, for the KL term, is split itself. 13 rows
    in steps of 6: the last step has one row.
    """
    task = {"retain": "kl"} if frozen else {}

    def run(name: str, rows: int, engine: Engine | None = None, again: bool = False) -> Any:
        args = {
            "max_steps": 5, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "use_cpu": True,
            "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1,
        }  # fmt: skip
        model = tiny_model(seed=2, tie_word_embeddings=tied)

        def reference(parallel: Parallel) -> Reference:
            if frozen:
                # Of another model: at a KL of zero, AdamW steps along rounding.
                return FrozenCopy(tiny_model(seed=1, tie_word_embeddings=tied), parallel=parallel)
            views = {"forget": [pairs()[row]["forget"] for row in range(13)]}
            folder = tmp_path / f"of_{name}"
            return CachedReference.compute(model, views, folder, pad_id=4, parallel=parallel)

        made = trainer(folder=tmp_path / name, model=model, task=objective(**task),
                       extra={"engine": engine, "reference": reference}, **args)  # fmt: skip
        made.run(again)
        weights = made.parallel.weights(made.model)
        return made.model.state_dict() if weights is None else weights

    def split() -> None:
        fsdp_on_cpu.apply()
        found = run("split", 6 // ranks, Engine("fsdp2"))
        if os.environ["RANK"] == "0":
            save_file(found, tmp_path / "split.safetensors")
            shutil.copytree(tmp_path / "split", tmp_path / "resumed")
            shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
            shutil.rmtree(tmp_path / "resumed" / "checkpoint-5", ignore_errors=True)
        torch.distributed.barrier()
        found = run("resumed", 6 // ranks, Engine("fsdp2"), again=True)
        if os.environ["RANK"] == "0":
            save_file(found, tmp_path / "resumed.safetensors")

    whole = run("whole", 6)
    on_ranks(ranks, split)
    there, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("split", "resumed"))
    assert there.keys() == resumed.keys() <= whole.keys()
    for name, value in there.items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-5, msg=name)
        assert torch.equal(resumed[name], value), name
    apart = (*WALL_CLOCK, "total_flos", "epoch")
    whole_log, split_log, resumed_log = (
        [{key: item for key, item in record.items() if key not in apart} for record in read_records(folder)]
        for folder in (tmp_path / name for name in ("whole", "split", "resumed"))
    )
    assert resumed_log == split_log
    for one, several in zip(whole_log, split_log, strict=True):
        assert several == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_a_folder_that_one_rank_does_not_see_is_an_error_on_all(tmp_path: Path) -> None:
    def look() -> None:
        runtime.join_ranks()
        check_shared(tmp_path / "shared")
        own = tmp_path / os.environ["RANK"]
        with pytest.raises(UserError, match="does not see the files of the first process"):
            check_shared(own, patience=0.2)

    on_ranks(2, look)
    assert not any((tmp_path / "shared").iterdir())
