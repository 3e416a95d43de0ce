"""Whole command lines with split weights: FSDP2 on CPU processes, see `fsdp_on_cpu`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from mini_runs import QUIET, model_is, read
from safetensors.torch import load_file
from test_rank_runs import RESULTS, curve, launch_words, launched, names, results, walk

pytestmark = pytest.mark.slow
ON_CPU = Path(__file__).resolve().parents[1] / "fsdp_on_cpu.py"
SRC = Path(__file__).resolve().parents[2] / "src"


def split(words: list[str]) -> list[str]:
    """The words of a launch, with the engine and its stand-in for a GPU."""
    script = next(number for number, word in enumerate(words) if word.endswith(".py"))
    return [*words[:script], str(ON_CPU), *words[script:], "parallel=fsdp2"]


def test_a_whole_run_with_split_weights_is_that_of_one_process(
    start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    """NPO with a KL term: its reference is split too. Killed on two processes, continued on three and one."""
    one, several, three, alone = (tmp_path / name for name in ("one", "several", "three", "alone"))
    subprocess.run(walk(0, 12, one, config_dir, start_model), check=True, timeout=300)
    subprocess.run(split(walk(2, 6, several, config_dir, start_model)), check=True, timeout=300)

    def is_that_of_one(folder: Path) -> None:
        for name, values in curve(one).items():
            assert curve(folder)[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
        expected, found = (load_file(run / "model.safetensors") for run in (one, folder))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)
        for name in (f"evals/{RESULTS[1]}", f"evals/step-3/{RESULTS[1]}"):
            there, here = read(folder / name), read(one / name)
            assert there.pop("forget_quality") is here.pop("forget_quality") is None
            assert there == pytest.approx(here, rel=1e-4, abs=1e-5), name

    is_that_of_one(several)
    assert not [path for path in several.rglob("*") if path.suffix in (".pt", ".pkl", ".distcp")
                and path.name != "scheduler.pt"]  # fmt: skip
    killed = tmp_path / "killed"
    words = split(walk(2, 6, killed, config_dir, start_model))
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        while run.poll() is None and not (killed / "checkpoint-2").is_dir():
            time.sleep(0.02)
        os.killpg(run.pid, signal.SIGKILL)
    for later in killed.glob("checkpoint-[345]"):
        shutil.rmtree(later)
    for folder in (three, alone):
        shutil.copytree(killed, folder)
    subprocess.run(split(walk(3, 4, three, config_dir, start_model)), check=True, timeout=300)
    is_that_of_one(three)
    subprocess.run(walk(0, 12, alone, config_dir, start_model), check=True, timeout=300)
    is_that_of_one(alone)
    # Steps of other rows would be another run.
    other = subprocess.run(
        walk(0, 8, alone, config_dir, start_model), capture_output=True, text=True, timeout=300, check=False
    )
    assert other.returncode == 2
    assert "rows_per_step: 12 there, 8 now" in other.stderr
    assert "trainer.args.gradient_accumulation_steps = 12" in other.stderr


@pytest.mark.parametrize(
    "own",
    [
        ("trainer=GradDiff", "trainer.args.gradient_accumulation_steps=2",
         "trainer.args.gradient_checkpointing=true"),
        ("trainer=NPO", "retain=nll", "model/adapter=lora", "model.adapter.dropout=0"),
        ("trainer=RMU", r"trainer.method_args.module_regex=model\.layers\.1",
         r"trainer.method_args.trainable_params_regex=[model\.layers\.1\..*]"),
    ],
)  # fmt: skip
def test_methods_with_split_weights(own: tuple[str, ...], config_dir: Path, tmp_path: Path) -> None:
    settings = ("--config-name=unlearn.yaml", "experiment=unlearn/mini/default", "eval=few", QUIET,
                "++trainer.args.use_cpu=true", "trainer.args.max_steps=3", "trainer.args.logging_steps=1",
                *own)  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    rows = "trainer.args.per_device_train_batch_size"
    subprocess.run(
        launch_words(0, "train.py", one, config_dir, *settings, f"{rows}=6"), check=True, timeout=300
    )
    words = split(launch_words(2, "train.py", two, config_dir, *settings, f"{rows}=3"))
    subprocess.run(words, check=True, timeout=300)
    for name, values in curve(one).items():
        assert curve(two)[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
    (file,) = (path.name for path in one.glob("*model.safetensors"))
    expected, found = (load_file(run / file) for run in (one, two))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "own", [(), ("model/adapter=lora", "trainer.args.save_only_model=true",
                 "model.model_args.torch_dtype=bfloat16")]
)  # fmt: skip
def test_the_best_model_is_loaded_by_all_processes(
    own: tuple[str, ...], config_dir: Path, tmp_path: Path
) -> None:
    """Forgetting lowers the probability, so the best checkpoint is the first one."""
    words = launch_words(
        2, "train.py", tmp_path / "run", config_dir, "--config-name=unlearn.yaml",
        "experiment=unlearn/mini/default", "trainer=GradAscent", "eval=few", QUIET,
        "++trainer.args.use_cpu=true", "trainer.args.max_steps=3", "trainer.args.learning_rate=1e-3",
        "trainer.args.eval_strategy=steps", "trainer.args.eval_steps=1", "trainer.args.save_strategy=steps",
        "trainer.args.save_steps=1", "trainer.args.load_best_model_at_end=true",
        "trainer.args.metric_for_best_model=forget_Q_A_Prob", "trainer.args.greater_is_better=true", *own,
    )  # fmt: skip
    subprocess.run(split(words), check=True, timeout=300)
    final = read(tmp_path / "run" / "evals" / RESULTS[1])
    best, last = (read(tmp_path / "run" / "evals" / f"step-{step}" / RESULTS[1]) for step in (1, 3))
    rel = 1e-5 if not own else 1e-2
    assert final["forget_Q_A_Prob"] == pytest.approx(best["forget_Q_A_Prob"], rel=rel)
    assert final["forget_Q_A_Prob"] > last["forget_Q_A_Prob"]


def test_an_evaluation_with_split_weights_is_that_of_one_process(
    start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    own = ("experiment=eval/mini/default", "eval=few", "eval.tofu.batch_size=1", model_is(start_model))
    one = launched(0, "eval.py", tmp_path / "one", config_dir, *own)
    words = split(launch_words(2, "eval.py", tmp_path / "two", config_dir, *own))
    subprocess.run(words, check=True, timeout=300)
    assert names(tmp_path / "two") == names(one.out)
    there, here = results(tmp_path / "two")[RESULTS[1]], results(one.out)[RESULTS[1]]
    assert there.pop("forget_quality") is here.pop("forget_quality") is None
    assert there == pytest.approx(here, rel=1e-5)


def test_an_engine_that_does_not_come_up_is_an_error(
    start_model: Path, config_dir: Path, tmp_path: Path
) -> None:
    own = ("experiment=eval/mini/default", "eval=few", model_is(start_model), "parallel=fsdp2")
    done = launched(2, "eval.py", tmp_path / "run", config_dir, *own)
    assert done.code != 0
    assert done.stderr.count("parallel=fsdp2 was asked for, but accelerate started MULTI_CPU") == 1
    assert not done.out.exists()
