"""Five steps of every method on the embedded benchmark's finetuned model change what the method claims."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_task import PAD
from test_five_steps import CASES, forgets

from expunge.config.validate import load_config
from expunge.data.pairs import PairedDataset, pairs_of

pytestmark = pytest.mark.slow


# At the start RR's loss is at a maximum with almost no gradient; larger steps are needed to leave it.
RATES = {"RR": 1e-2}


class Benchmark(NamedTuple):
    """The finetuned and the untrained model, the tokenizer, and the rows of the sides that a method reads."""

    model: Any
    untrained: Any
    tokenizer: Any
    rows: Any


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Trained once, on all rows."""
    from expunge.data.mini.model import build_model
    from expunge.models.load import load_model
    from expunge.pipelines.assemble import sides_of, text_of
    from expunge.pipelines.training_run import run_training

    folder: Path = tmp_path_factory.mktemp("mini") / "full"
    run_training(
        load_config(
            "train.yaml",
            ["experiment=finetune/mini/default", "task_name=full", f"paths.output_dir={folder}", "eval=null"],
        )
    )
    overrides = [
        "experiment=unlearn/mini/idk",
        "task_name=five",
        f"model.model_args.pretrained_model_name_or_path={folder}",
    ]
    cfg = load_config("unlearn.yaml", overrides)
    text = text_of(cfg, [])
    assert text.pad_id == PAD
    sides = sides_of(cfg, text, ("forget", "retain", "alternate"))
    pairs = pairs_of(sides["forget"], sides["retain"], 0, n_epochs=6)
    model = load_model(cfg.section("model.model_args"), for_training=True, notices=[]).model
    return Benchmark(
        model,
        build_model(text.tokenizer),
        text.tokenizer,
        lambda read: PairedDataset(sides["forget"], sides["retain"], pairs, sides=read),
    )


@pytest.mark.parametrize("name", CASES)
def test_five_steps_on_the_benchmark_change_what_the_method_claims(run: Any, mini: Benchmark, name: str):
    handler, args, claim = CASES[name]
    # The finetuned model already knows the retain rows.
    start = mini.untrained if name == "FT" else mini.model
    ran = run(
        f"expunge.methods.{handler}",
        args,
        steps=5,
        learning_rate=RATES.get(name, 1e-3),
        model=copy.deepcopy(start),
        data=mini.rows,
        tokenizer=mini.tokenizer,
    )
    assert ran.trainer.state.global_step == 5
    claim(ran)


def test_the_claims_can_fail(run: Any, mini: Benchmark):
    """Five steps of finetuning on the retain rows do not forget."""
    ran = run(
        "expunge.methods.finetune:finetune",
        {},
        learning_rate=1e-3,
        model=copy.deepcopy(mini.model),
        data=mini.rows,
    )
    with pytest.raises(AssertionError):
        forgets(ran)
